"""The marks, and the words of several languages, by which an answer says which option it means."""

from __future__ import annotations

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


OPEN, CLOSE = frozenset("([{<"), frozenset(")]}>")
ENDS: Final = frozenset(".,;:!?\u2014\u2013-=)]}>。，；：！？、")
LABEL_MARKS: Final = frozenset(".):,;(\u2014\u2013-、")
POINTS: Final = frozenset(":=\u2192>\u2014\u2013-")
CLAUSE_ENDS: Final = frozenset(".;!?:")
GLUED: Final = frozenset("+°%@=&")  # C++, 25 °C, B&W: no option
SENTENCE_ENDS: Final = frozenset(".!?;")
NOUNS: Final = _words(
    "answer option choice conclusion selection pick guess response result verdict ans antwort "
    "lösung réponse reponse respuesta opción opcion risposta resposta opção odpowiedź ответ "
    "cevap yanıt jawaban svar vastaus antwoord án الإجابة الجواب final solution assistant"
)
# With these alone, and a letter after them, an option is mentioned and not yet stated.
LABELS: Final = _words(
    "option choice opción opcion opção answer antwort antwoord réponse respuesta"
)
FINAL: Final = _words("final finale finally endgültige ultimate overall")
# What may stand between a noun and its verb: "the answer to the question above would be".
LINKS: Final = _words(
    "to the this that these question problem i we you my our of for in on from with based given "
    "above image images picture pictures photo here would should must then therefore thus hence "
    "so clearly most likely probably definitely best correct right choose chose chosen select "
    "selected pick is be number letter option choice answer richtige correcte correcta corretta "
    "correta es ist est é è"
)
COPULAS: Final = _words(
    "is be was are being remains ist lautet wäre est serait es sería sea è sarebbe é seria to"
)
# Between verb and letter: "is therefore option number".
FILLERS: Final = _words(
    "is be the a an therefore thus hence clearly most likely probably definitely indeed then "
    "option choice letter answer number correct best right simply just definitely labeled "
    "labelled marked la le el il die der das opción opcion lettre letra richtig correcta "
    "correcte for with toward towards"
)
VERBS: Final = _words(
    "choose chose choosing select selecting pick picking picked selected go opt lean vote guess "
    "say prefer think believe wähle choisis elijo scelgo escolho"
)
# Of these the letter must stand in the same line.
SAYS: Final = _words("say guess think believe")
BE: Final = _words("is are was be seems appears looks ist est es é è would must should")
RIGHT: Final = _words(
    "correct right best answer true accurate richtig correcte correcta corretta correta"
)
WRONG: Final = _words("wrong incorrect false inaccurate untrue falsch")
BETWEEN: Final = _words(
    "the a most clearly likely probably definitely therefore thus indeed be to also only my our "
    "overall final one option choice"
)
NOT: Final = _words(
    "not no isn't isnt never cannot can't don't doesn't wouldn't won't wasn't aren't neither "
    "nor without except instead nicht pas kein"
)
NONE: Final = _words(
    "none neither both either nothing unclear unknown impossible undetermined all ambiguous"
)
MAYBE: Final = _words("could might may can cannot can't couldn't if whether unless")
OTHER: Final = _words("rather other instead")
# Ahead of a noun these make it a supposition: "if the answer is B".
SUPPOSE: Final = _words("if whether suppose assuming assume unless were when")
BECAUSE: Final = _words(
    "because since as due given for considering which where not but rather instead based weil "
    "denn car porque perché"
)
# After a capital A these show that it is no article.
FOLLOWS: Final = BECAUSE | _words("the this that and or is")
RELATIVE: Final = _words("that which i we")
OR: Final = _words("or and oder und ou et y o e или и /") | {"/", "&", "+", "|"}
HERE: Final = _words(
    "it it's its that that's c'est wait actually correction this therefore thus so hence ergo"
)
# After one statement these let a later one hold in its place.
CORRECTS: Final = _words(
    "wait actually but no nope sorry correction corrected rather instead however reconsidering "
    "hmm mistake mistaken revised revise oops aber nein"
)
# Ahead of a letter of an option; after another noun it is the letter of something else.
BEFORE: Final = (
    LABELS
    | HERE
    | OR
    | BECAUSE
    | SUPPOSE
    | _words("think believe say clearly only while but although though then guess")
)

# Ends of a run of Chinese, Japanese or Korean after which the letter comes.
CJK_STATES: Final = tuple(
    _words(
        "答案 答案是 答案为 答案為 答案应为 答案应该是 选项 選項 选项是 应选 應選 选择 選擇 选 選 "
        "选项为 正确的是 正解は 答えは 正答は 回答は 正解 答え 정답은 정답 답은 답 옵션"
    )
)
CJK_DENIES: Final = tuple(_words("不选 不選 不是 并非 而非 不应选 ではなく 아니라"))
CJK_OR: Final = _words("或 或者 和 与 與 还是 また または と か 또는")
