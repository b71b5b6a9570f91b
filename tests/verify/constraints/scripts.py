"""Words and sentences of seven scripts, from which the cases of every constraint are built.

Simple words, checked against dictionaries and bilingual data by the authors of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Script:
    """`sentences` pair a sentence with its number of words; `traps` pair a word with a longer word
    that holds it only by chance; `compounds` with a longer word in which it does count."""

    language: str
    words: tuple[str, ...]
    sentences: tuple[tuple[str, int], ...]
    traps: tuple[tuple[str, str], ...]
    compounds: tuple[tuple[str, str], ...]
    digits: str
    commas: str
    quotes: tuple[tuple[str, str], ...]
    section: str
    postscript: str
    letter: str
    letter_counts: tuple[tuple[str, int], ...]
    space: str = ""


SCRIPTS = {
    "Latin": Script(
        language="id",
        words=("ikan", "pasar", "rumah", "pagi", "ibu", "nasi", "sungai", "kucing"),
        sentences=(
            *(("Ibu pergi ke pasar.", 4), ("Kucing makan ikan.", 3), ("Pagi ini hujan!", 3)),
            *(("Rumah kami dekat sungai.", 4), ("Anak-anak makan nasi?", 3)),
        ),
        traps=(("nasi", "nasional"), ("ibu", "ibukota"), ("pasar", "pasaran"), ("pagi", "pagina")),
        compounds=(("rumah", "rumahnya"), ("ikan", "ikanlah"), ("ibu", "ibu-ibu")),
        digits="0123456789",
        commas=",",
        quotes=(('"', '"'), ("“", "”"), ("«", "»")),
        section="BAGIAN",
        postscript="P.S.",
        letter="k",
        letter_counts=(("ikan kecil", 2), ("Kucing", 1), ("sungai", 0), ("kakek", 3)),
        space=" ",
    ),
    "Thai": Script(
        language="th",
        words=("ปลา", "ตลาด", "บ้าน", "เช้า", "แม่", "ข้าว", "แม่น้ำ", "แมว"),
        sentences=(
            *(("แม่ไปตลาด", 3), ("แมวกินปลา", 3), ("แมวชอบปลา", 3)),
            *(("บ้านอยู่ใกล้แม่น้ำ", 4), ("เด็กกินข้าว", 2)),
        ),
        traps=(("ปลา", "ปลาย"), ("มา", "มาก"), ("ตา", "ตาม"), ("ยา", "ยาก"), ("นา", "นาน")),
        compounds=(("เช้า", "ตอนเช้า"), ("บ้าน", "หมู่บ้าน"), ("แมว", "แมวๆ")),
        digits="๐๑๒๓๔๕๖๗๘๙",
        commas=",，",
        quotes=(('"', '"'), ("“", "”"), ("«", "»")),
        section="ส่วน",
        postscript="ป.ล.",
        letter="ก",
        letter_counts=(("กิน", 1), ("แมว", 0), ("กี่กก", 3), ("เด็ก", 1)),
    ),
    "Lao": Script(
        language="lo",
        words=("ປາ", "ຕະຫຼາດ", "ເຮືອນ", "ເຊົ້າ", "ແມ່", "ເຂົ້າ", "ນ້ຳ", "ແມວ"),
        sentences=(
            *(("ແມ່ໄປຕະຫຼາດ.", 3), ("ແມວກິນປາ.", 3), ("ແມ່ຊື້ປາ.", 3)),
            *(("ເຮືອນຢູ່ໃກ້ນ້ຳ.", 4), ("ເດັກຊື້ນ້ຳ?", 3)),
        ),
        traps=(("ປາ", "ປາຍ"), ("ຕາ", "ຕາມ"), ("ຫາ", "ຫາຍ"), ("ຢາ", "ຢາກ"), ("ນາ", "ນານ")),
        compounds=(("ເຊົ້າ", "ຕອນເຊົ້າ"), ("ແມວ", "ແມວໆ")),
        digits="໐໑໒໓໔໕໖໗໘໙",
        commas=",，",
        quotes=(('"', '"'), ("“", "”"), ("«", "»")),
        section="ພາກ",
        postscript="ປ.ລ.",
        letter="ກ",
        letter_counts=(("ກິນ", 1), ("ແມວ", 0), ("ກີ່ກົກ", 3), ("ເດັກ", 1)),
    ),
    "Khmer": Script(
        language="km",
        words=("ត្រី", "ផ្សារ", "ផ្ទះ", "ព្រឹក", "ម្តាយ", "បាយ", "ទឹក", "ឆ្មា"),
        sentences=(
            *(("ម្តាយទៅផ្សារ។", 3), ("ឆ្មាស៊ីត្រី។", 3), ("ខ្ញុំទិញបាយ។", 3)),
            *(("ម្តាយទិញទឹក។", 3), ("គាត់ទិញត្រី?", 3)),
        ),
        traps=(("តា", "តាម"), ("មា", "មាន"), ("បា", "បាន"), ("កា", "ការ"), ("ថា", "ថាស")),
        compounds=(("ទឹក", "ទឹកដោះគោ"), ("ផ្ទះ", "ផ្ទះបាយ")),
        digits="០១២៣៤៥៦៧៨៩",
        commas=",，",
        quotes=(('"', '"'), ("“", "”"), ("«", "»")),
        section="ផ្នែក",
        postscript="ប.ល.",
        letter="ក",
        letter_counts=(("កាក", 2), ("ត្រី", 0), ("កូនកាត់", 2), ("ទឹក", 1)),
    ),
    "Burmese": Script(
        language="my",
        words=("ငါး", "ဈေး", "အိမ်", "မနက်", "အမေ", "ထမင်း", "ရေ", "ကြောင်"),
        sentences=(
            *(("အမေ ဈေး သွားတယ်။", 4), ("ကြောင် ငါး စားတယ်။", 4), ("ငါ ထမင်း စားတယ်။", 4)),
            *(("အိမ် ဈေး နီးတယ်။", 4), ("ဒီနေ့ မိုးရွာတယ်။", 4)),
        ),
        traps=(("ရေ", "ရေး"), ("စာ", "စား"), ("ငါ", "ငါး"), ("လာ", "လား"), ("ကော", "ကောင်း")),
        compounds=(("ရေ", "သောက်ရေ"), ("အိမ်", "အိမ်ရှင်")),
        digits="၀၁၂၃၄၅၆၇၈၉",
        commas="၊,",
        quotes=(('"', '"'), ("“", "”"), ("«", "»")),
        section="အပိုင်း",
        postscript="P.S.",
        letter="က",
        letter_counts=(("ကား", 1), ("ငါး", 0), ("ကကာကိ", 3), ("မကောင်း", 1)),
    ),
    "Tamil": Script(
        language="ta",
        words=("மீன்", "சந்தை", "வீடு", "காலை", "அம்மா", "சோறு", "ஆறு", "பூனை"),
        sentences=(
            *(("அம்மா சந்தைக்குப் போனாள்.", 3), ("பூனை மீன் தின்றது.", 3)),
            *(("இன்று மழை பெய்தது!", 3), ("எங்கள் வீடு ஆற்றின் அருகில் உள்ளது.", 5)),
            ("குழந்தை சோறு சாப்பிட்டதா?", 3),
        ),
        traps=(("காலை", "அதிகாலை"), ("பூனை", "காட்டுப்பூனை"), ("ஆறு", "பதினாறு"), ("கல்", "கலை")),
        compounds=(("காலை", "காலையில்"), ("அம்மா", "அம்மாவின்")),
        digits="௦௧௨௩௪௫௬௭௮௯",
        commas=",",
        quotes=(('"', '"'), ("“", "”"), ("«", "»")),
        section="பகுதி",
        postscript="பி.கு.",
        letter="க",
        letter_counts=(("கடல்", 1), ("காலை", 0), ("ககன", 2), ("பக்கம்", 1)),
        space=" ",
    ),
    "Han": Script(
        language="zh",
        words=("鱼", "市场", "房子", "早上", "妈妈", "米饭", "河", "猫"),
        sentences=(
            *(("妈妈去市场。", 3), ("猫吃鱼。", 3), ("今天下雨！", 2)),
            *(("我们喜欢猫。", 3), ("孩子吃米饭？", 3)),
        ),
        traps=(("市场", "市区广场"), ("早上", "早晚上"), ("米饭", "米和饭")),
        compounds=(("鱼", "金鱼"), ("市场", "菜市场")),
        digits="０１２３４５６７８９",
        commas="，、,",
        quotes=(('"', '"'), ("“", "”"), ("「", "」")),
        section="部分",
        postscript="附言",
        letter="人",
        letter_counts=(("人人", 2), ("猫", 0), ("大人和人", 2), ("入", 0)),
    ),
}
