"""Short word lists that tell apart languages written in Latin letters, as data.

`FUNCTION_WORDS` help with texts of a few words, where a character model guesses. The other two
hold everyday words, and spellings, that Malay uses and Indonesian hardly does, and the reverse.
"""

from __future__ import annotations


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTION_WORDS = {
    "en": _set(
        "the a an is are was were be been am i you he she it we they of to in on at for and"
        " or but not this that with from as by my your his her our their what who where when"
        " why how do does did have has had will would can could should there here if then"
        " yes no me him them us its"
    ),
    "id": _set(
        "yang dan di ke dari ini itu tidak adalah untuk pada dengan saya kamu anda dia"
        " mereka kami kita akan sudah telah bisa ada juga atau karena seperti dalam oleh"
        " lebih sangat bukan jangan apa siapa mana bagaimana kapan mengapa belum aku kalian"
        " sedang masih harus ingin mau ya hanya"
    ),
    "ms": _set(
        "yang dan di ke dari ini itu tidak ialah untuk pada dengan saya awak anda dia"
        " mereka kami kita akan sudah telah boleh ada juga atau kerana seperti dalam oleh"
        " lebih sangat bukan jangan apa siapa mana bagaimana bila mengapa belum aku sedang"
        " masih mesti ingin mahu ya hanya"
    ),
    "tl": _set(
        "ang ng sa mga na ay at ko mo niya siya ako ikaw kami tayo sila ito iyan iyon hindi"
        " wala may mayroon para kung dahil pero o si ni kay nang lang din rin ba po opo oo"
        " ka kayo namin natin nila ano sino saan kailan bakit paano gusto dito doon kanya"
        " kaniyang isang"
    ),
    "vi": _set(
        "và là của có không được cho một những các này đó với trong ở tôi bạn anh chị em nó"
        " chúng ta họ người khi đã đang sẽ rất cũng như từ đến ra vào nhưng vì nếu gì ai đâu"
        " sao thế nào hãy"
    ),
    # Not one of ours, but short Swahili texts look like Filipino or Indonesian to the model.
    "sw": _set(
        "na ya wa kwa ni la za katika kama kuwa hii hiyo huo huu hakuna sana yake yangu yako mimi"
        " wewe yeye sisi wao si au lakini pia nini gani sababu siku mtu watu moja hata baada kabla"
    ),
}

MALAY_ONLY = _set(
    "kerana ialah mahu awak sahaja manakala pelbagai berbeza beza cuba bahawa wang televisyen"
    " universiti polis sebarang hendaklah jururawat doktor syarikat projek bahagian basikal"
    " kastam pasaraya telefon bimbit tandas almari tingkap hujung cuti isnin jumaat ahad mac"
    " ogos disember julai jun aktiviti kualiti komuniti kuantiti identiti realiti sukan"
    " menerusi datuk pakcik makcik takde kat camne korang je seronok setiausaha pengerusi"
    " pengarah parlimen saintis saintifik sesetengah sebahagian sesawang fail cakera perisian"
    " perkakasan lapan kanak kesihatan sihat baharu tiada terutamanya perkhidmatan kejohanan"
    " pingat peratus bilion trilion muzik filem elektrik syurga fizik fizikal perancis"
    " sepanyol jepun eropah greek bandar bandaraya cakap tengok faham fikir berfikir sifar"
    " kerosakan rosak lori petrol stesen kemalangan kempen mesyuarat kuih sos sila inggeris"
    " boleh semasa apabila maklumat kereta ditemui beliau kerajaan"
)
INDONESIAN_ONLY = _set(
    "karena bisa kalian bahwa berbeda beda coba uang mobil televisi universitas polisi kantor"
    " perusahaan proyek informasi bagian sepeda bandara toko ponsel kulkas lemari jendela"
    " senin jumat maret agustus desember juli juni aktivitas kualitas komunitas kuantitas"
    " identitas realitas olahraga tim meski gue gua lu enggak nggak gak udah aja doang banget"
    " dong deh kok gimana listrik danau sekretaris direktur pengadilan riset ilmuwan ilmiah"
    " mahasiswa unduh butuh membutuhkan kebutuhan cuma berbagai beragam cewek cowok pacar"
    " delapan miliar persen triliun musik film jepang eropa prancis spanyol yunani pikir"
    " berpikir paham kerusakan rusak truk stasiun bensin kecelakaan rapat kampanye kesehatan"
    " sehat layanan pelayanan pemilu kejuaraan medali fisika fisik kota provinsi kabupaten"
    " kecamatan dokter perawat kuliah jurusan silakan mau kamar resep kue saus inggris"
    " ditemukan pemerintah saat"
)
