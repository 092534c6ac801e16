"""Texts that the goldens ask about besides SQuAD's: awkward ones, and ones on which the reference goes wrong.

Each has a name, a question and a passage. Change them here, then run ``python -m tests.golden.generate``.
"""

from __future__ import annotations

from typing import NamedTuple


class Text(NamedTuple):
    """A question and its passage."""

    question: str
    context: str


WHO = "Who built the lighthouse?"
WHEN = "When was the lighthouse built?"

# On these the reference is right, and the Reader must say the same.
AWKWARD = {
    "accents composed": Text(WHO, "Le phare était vieux. The lighthouse was built by René Bélanger à Québec."),
    "accents decomposed": Text(
        WHO, "Le phare e\u0301tait vieux. The lighthouse was built by Rene\u0301 Be\u0301langer a\u0300 Que\u0301bec."
    ),
    "accent decomposed at the end of a word": Text(WHO, "The lighthouse was built by Ana Jose\u0301 in 1887."),
    "marks stacked": Text(WHO, "The lighthouse was built by Z\u0351\u036b\u0343a\u0329\u0316lgo\u031f\u0320 in 1887."),
    "mark at the very start": Text(WHO, "\u0301The lighthouse was built by Ana Berg."),
    "Vietnamese": Text(WHO, "Ngọn hải đăng: the lighthouse was built by Nguyễn Thị Phượng in 1887."),
    "Turkish dotted I": Text(WHO, "The lighthouse was built by İbrahim Işık in 1887."),
    "ligatures and sharp s": Text(WHO, "The ofﬁcial lighthouse was built by Jürgen Groß, not by ﬃord ẞ."),
    "full width": Text(WHEN, "Ｔｈｅ lighthouse was built in １８８７ by Ａｎａ."),
    "Chinese": Text("灯塔是谁建造的？", "灯塔由陈伟于1887年建造。港口很安静。"),
    "Japanese": Text(WHO, "灯台は1887年に鈴木一郎が建てました。 The lighthouse was built by 鈴木一郎."),
    "Korean": Text(WHO, "등대는 김민준이 지었다. The lighthouse was built by 김민준."),
    "Hindi": Text(WHO, "प्रकाशस्तंभ 1887 में बना। The lighthouse was built by अनीता शर्मा."),
    "Thai": Text(WHO, "ประภาคารสร้างโดยสมชาย The lighthouse was built by สมชาย ใจดี."),
    "Hebrew": Text(WHEN, "המגדלור נבנה על ידי מִרְיָם כהן בשנת 1887."),
    "Arabic": Text(WHO, "The lighthouse was built by مريم سعيد in 1887. بُنِيَتِ المنارة."),
    "mixed direction": Text(WHEN, "The lighthouse was built by \u202bמרים כהן\u202c in \u200f1887\u200e."),
    "emoji": Text(WHO, "🗼 The lighthouse was built by Anna 👍 Berg 😀 in 1887."),
    "emoji with skin tones and joiners": Text(
        WHO, "👩🏽\u200d🚀 The lighthouse was built by 👨\u200d👩\u200d👧 Anna Berg 🇸🇪."
    ),
    "beyond the first plane": Text(WHO, "𝕿𝖍𝖊 lighthouse was built by 𠮷田 and 𝔄nna."),
    "NUL": Text(WHO, "The light\0house was built by Ma\0ria Sol\0berg.\0"),
    "control characters": Text(WHO, "\ufeff\u200b\x01The\x02 lighthouse\x7f was built by \ufffdMaria\ufffd Berg."),
    "zero width and soft hyphens": Text(WHO, "The light\u00adhouse was built by Ma\u200bria Sol\u00adberg."),
    "CRLF": Text(WHO, "The lighthouse\r\nwas built by\r\nMaria\r\nSolberg\r\n.\r\n"),
    "tabs in a table": Text(WHEN, "name\tbuilt\theight\nthe lighthouse\t1887\t41 m\nthe bridge\t1902\t12 m\n"),
    "white space of all kinds": Text(
        WHO, " \t\u00a0 The  lighthouse   was built by \r\n\u3000 Maria \u2003 Solberg  ,  \v twice \n "
    ),
    "line separators": Text(WHO, "The lighthouse\u2028was built by\u2029Maria\x85Solberg\x0cin 1887."),
    "hyphens and dashes": Text(WHO, "The light-house was built by Jean-Luc Saint-Exupéry–Berg—in 1887—with care."),
    "quotes": Text(WHO, '“The lighthouse,” it said, ‘was built by “Big” O’Malley’, or "Big" O\'Malley.'),
    "brackets": Text(WHO, "The lighthouse (built by [Maria {Solberg}]) stands <here>."),
    "numbers with commas": Text("How much did it cost?", "The lighthouse cost 1,234,567.89 kroner, or $98,765."),
    "units and signs": Text("How cold was it?", "At the lighthouse it was −12.5 °C (9.5 °F) ± 0.3 at 1013¼ hPa."),
    "dates": Text(WHEN, "The lighthouse was built on 1887-06-30T12:00:00Z, a Thursday."),
    "URL": Text("Where is the report?", "See https://example.org/a_b/c?d=e&f=%20g#h for the report on the lighthouse."),
    "e-mail": Text("Whom should one write to?", "Write to first.last+tag@mail.example.co.uk about the lighthouse."),
    "code": Text(
        "What does the function return?", "def f(x):\n    if x < 0:\n        return None\n    return x ** 2  # f"
    ),
    "JSON": Text(WHO, '{"lighthouse": {"built_by": "Maria Solberg", "year": 1887, "lit": true}}'),
    "LaTeX": Text("What is the energy?", r"The energy is $E = mc^{2}$, where \(m\) is the mass and $c$ the speed."),
    "mark-up": Text(WHO, "<p>The lighthouse was built by <b>Maria&nbsp;Solberg</b><br/>in 1887.</p>"),
    "capitals": Text("WHO BUILT THE LIGHTHOUSE?", "THE LIGHTHOUSE WAS BUILT BY MARIA SOLBERG IN 1887."),
    "one letter": Text("Which letter?", "x"),
    "one sign": Text("Which sign?", "!"),
    "two words": Text(WHO, "Maria Solberg"),
    "signs only": Text("What is it?", "?!... --- ***"),
    "a word too long for the vocabulary": Text(WHO, "The lighthouse was built by " + "lighthouse" * 20 + " in 1887."),
    "answer at the very start": Text(WHO, "Maria Solberg built the lighthouse."),
    "answer at the very end": Text(WHO, "The lighthouse was built by Maria Solberg"),
    "answer is all": Text("What is the motto?", "fortune favours the bold"),
    "question is the passage": Text("The lighthouse was built in 1887.", "The lighthouse was built in 1887."),
    "question of one sign": Text("?", "The lighthouse was built by Maria Solberg in 1887."),
    "question with white space": Text(" \r\n\tWho  built\u3000it ? ", "It was built by Maria Solberg."),
    "long question": Text("Please tell me, " * 24 + WHO, "The lighthouse was built by Maria Solberg in 1887."),
    "repeated phrases": Text(WHO, "It was built, it was built, it was built by, built by, built by Maria Solberg."),
}

FILLER = "The harbour was quiet that morning, and the boats lay still on the water. "
FACT = "The lighthouse was built by Maria Solberg in 1887. "

# On these the reference goes wrong. How, and what the Reader does instead, is said in test_golden.py.
DIFFERENT = {
    "an answer in two windows": Text(WHO, FILLER * 18 + FACT + FILLER * 10),
    "a window without the answer": Text(WHO, "The bridge was built by Ole Berg. " + FILLER * 30 + FACT),
    "a word cut by a window": Text(
        WHO, FILLER * 22 + "so " * 12 + ". The lighthouse was built by Zelgothrixandermann. " + FILLER * 4
    ),
    "equal texts at two places": Text(
        WHO, "Maria Solberg built the lighthouse. Yes, Maria Solberg built the lighthouse."
    ),
    "equal but for capitals": Text(WHO, "MARIA SOLBERG built the lighthouse. Yes, Maria Solberg built the lighthouse."),
    "equal texts at four places": Text("Who?", "Yes yes yes yes"),
    "a word of many pieces": Text("What is it?", "It is pneumonoultramicroscopicsilicovolcanoconiosis."),
    "one word": Text("Who?", "Maria"),
    "no word": Text("Who?", " \t\r\n"),
    "[SEP]": Text("What ends a segment?", "A segment ends with [SEP] and begins anew."),
    "[SEP] and [PAD]": Text(
        "Which token separates the texts?", "The texts are separated by the token [SEP], and padded with [PAD]."
    ),
    "[CLS]": Text("What is the token?", "The first token is [CLS] and nothing else."),
}
