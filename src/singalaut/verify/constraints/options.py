"""The answers that `detectable_format:constrained_response` allows, by language, as data.

English ones are those of IFEval, the others those that SEA-IFEval's prompts show. SEA-IFEval has no
Chinese: that line is written for this repository and not checked by a native speaker.
"""

from __future__ import annotations

CONSTRAINED_OPTIONS: dict[str, tuple[str, ...]] = {
    "en": ("My answer is yes.", "My answer is no.", "My answer is maybe."),
    "id": ("Jawaban saya adalah ya.", "Jawaban saya adalah tidak.", "Jawaban saya adalah mungkin."),
    "km": ("ខ្ញុំយល់ស្រប។", "ខ្ញុំមិនយល់ស្រប។", "ខ្ញុំមិនច្បាស់ដែរ។"),
    "lo": ("ຄໍາຕອບຂອງຂ້ອຍແມ່ນຈິງ.", "ຄໍາຕອບຂອງຂ້ອຍແມ່ນບໍ່ຈິງ.", "ຄໍາຕອບຂອງຂ້ອຍແມ່ນອາດຈະຈິງ."),
    "ms": ("Jawapan saya ialah ya.", "Jawapan saya ialah tidak.", "Jawapan saya ialah mungkin."),
    "my": (
        "ကျွန်ုပ်၏အဖြေသည် ဟုတ်ပါတယ်။",
        "ကျွန်ုပ်၏အဖြေသည် မဟုတ်ပါ။",
        "ကျွန်ုပ်၏အဖြေသည် တစ်ချို့ဖြစ်နိုင်ပါတယ်။",
    ),
    "ta": ("என்னுடைய பதில் ஆம்.", "என்னுடைய பதில் இல்லை.", "என்னுடைய பதில் ஒருவேளை இருக்கலாம்."),
    "th": ("คำตอบของฉันคือใช่", "คำตอบของฉันคือไม่", "คำตอบของฉันคืออาจจะ"),
    "tl": ("Ang sagot ko ay oo.", "Ang sagot ko ay hindi.", "Ang sagot ko ay siguro."),
    "vi": (
        "Câu trả lời của tôi là có.",
        "Câu trả lời của tôi là không.",
        "Câu trả lời của tôi là có thể.",
    ),
    "zh": ("我的回答是肯定的。", "我的回答是否定的。", "我的回答是不确定。"),
}
# Thai particles that may follow a sentence without changing what it says.
POLITE_ENDINGS = "ครับ|ค่ะ|คะ|นะ|จ้ะ|จ้า"
