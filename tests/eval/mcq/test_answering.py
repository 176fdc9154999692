"""Answers from one prefill equal what each option and each prompt gives for itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import tiny_llava
import torch
from peft import LoraConfig, get_peft_model

from kvfix.compare.align import Name, read_side
from kvfix.data.units import Question
from kvfix.eval.mcq.answer import Answer, answer, score_options
from kvfix.eval.mcq.options import answer_gap, option_tokens, option_tree
from kvfix.eval.mcq.prefill import Prefill
from kvfix.eval.mcq.prompt import McqProtocol, ask
from kvfix.eval.mcq.run import batches, question_row
from kvfix.mlm.load import Mlm, load_mlm
from kvfix.mlm.renamed import cache_of
from kvfix.runs.rows import to_json
from kvfix.runs.samples import SampleFile

Load = Callable[..., Mlm]
WORDS = ("left", "right", "up", "down")


@pytest.fixture
def load(checkpoint: Callable[[str], Path]) -> Load:
    return lambda name, **more: load_mlm(str(checkpoint(name)), **more)


def questions(n: int = 4, *, images: int | None = None) -> list[Question]:
    """Of different lengths, with one to three images and two to four options."""
    return [
        Question(
            f"q{i}",
            f"q{i}",
            "Jigsaw",
            tuple(tiny.photo(50 + 10 * i, 60, seed=7 * i + k) for k in range(images or 1 + i % 3)),
            "Where is the thing" + " now" * i + "?",
            WORDS[: 2 + i % 3],
            i % 2,
        )
        for i in range(n)
    ]


def naive_logprobs(
    mlm: Mlm, question: Question, protocol: McqProtocol
) -> tuple[list[list[float]], list[list[int]]]:
    """Each option by a forward pass of its own, batch 1, without a cache; its tokens too."""
    encoded = mlm.encode([ask(question, protocol)])
    assert bool(encoded.inputs["attention_mask"].all())
    [options] = option_tokens(
        encoded.order_texts,
        [len(question.choices)],
        form=protocol.form,
        gap=answer_gap(mlm.processor),
        tokenizer=mlm.processor.tokenizer,
    )
    out = []
    for ids in options:
        inputs = {k: v for k, v in encoded.inputs.items() if k != "position_ids"}
        new = torch.tensor([ids])
        start = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat((inputs["input_ids"], new), dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        for name in {"mm_token_type_ids", "token_type_ids"} & inputs.keys():
            # In PaliGemma 1 is what no token of the prompt sees, elsewhere 0 is text.
            kind = torch.full_like(new, mlm.family.sees_ahead == "prompt")
            inputs[name] = torch.cat((inputs[name], kind), dim=1)
        with torch.no_grad():
            logprobs = mlm.model(**inputs, use_cache=False).logits[0].log_softmax(-1)
        out.append([float(logprobs[start - 1 + k, t]) for k, t in enumerate(ids)])
    return out, [list(ids) for ids in options]


def naive_text(mlm: Mlm, question: Question, protocol: McqProtocol) -> str:
    """What plain `generate` writes, batch 1."""
    encoded = mlm.encode([ask(question, protocol)])
    inputs = {k: v for k, v in encoded.inputs.items() if k != "position_ids"}
    ids = mlm.model.generate(**inputs, max_new_tokens=protocol.max_new_tokens, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return mlm.processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def check(mlm: Mlm, asked: Sequence[Question], protocol: McqProtocol) -> list[Answer]:
    """Scores and texts of a batch are those of each question and option alone."""
    found = answer(mlm, asked, protocol)
    for question, got in zip(asked, found, strict=True):
        each, tokens = naive_logprobs(mlm, question, protocol)
        uneven = len({len(ids) for ids in tokens}) > 1
        sums = [sum(path) / (len(path) if uneven else 1) for path in each]
        assert got.logprobs == pytest.approx(sums, abs=1e-4) and got.per_token == uneven
        assert got.logprob_letter == "ABCD"[sums.index(max(sums))]
        assert got.text == naive_text(mlm, question, protocol)
    return found


@pytest.mark.parametrize("name", tiny.EVERY)
def test_a_batch_equals_each_option_and_prompt_alone(name: str, load: Load) -> None:
    mlm = load(name)
    found = check(mlm, questions(), McqProtocol(batch=4, max_new_tokens=6))
    assert [len(got.logprobs) for got in found] == [2, 3, 4, 2]
    texts = [got.text for got in found]
    assert len(set(texts)) > 1 and texts.count("") <= 1  # random weights may end at once
    lengths = [
        mlm.encode([ask(q, McqProtocol())]).inputs["input_ids"].shape[1] for q in questions()
    ]
    assert len(set(lengths)) == 4  # all but one of them were padded


@pytest.mark.parametrize("name", tiny.FAMILIES)
@pytest.mark.parametrize(
    "protocol",
    [
        McqProtocol(order="text-first", max_new_tokens=3),
        McqProtocol(concat=True, form="A", max_new_tokens=3),
        McqProtocol(batch=2, max_pixels=900, max_new_tokens=3),
    ],
)
def test_every_protocol_does(name: str, protocol: McqProtocol, load: Load) -> None:
    check(load(name), questions(3), protocol)


def test_eager_attention_does(load: Load) -> None:
    check(load("qwen2_5_vl", attn="eager"), questions(3), McqProtocol(max_new_tokens=3))


def test_an_adapter_counts(load: Load) -> None:
    mlm = load("llava_onevision")
    plain = score_options(mlm, questions(2), McqProtocol())
    config = LoraConfig(r=2, lora_alpha=8, target_modules=mlm.lora_targets("lm"))
    model = get_peft_model(load("llava_onevision").base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    tuned = Mlm(**{**vars(mlm), "model": model.eval()})
    found = check(tuned, questions(2), McqProtocol(max_new_tokens=3))
    assert found[0].logprobs != pytest.approx(plain[0].logprobs, abs=1e-2)


@pytest.fixture
def merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mlm:
    """A tiny model whose tokenizer knows "(A" and "(B)" as one token each."""
    plain = tiny.tokenizer()
    state = json.loads(plain.backend_tokenizer.to_str())
    state["pre_tokenizer"]["use_regex"] = False  # brackets and letters in one word, as in Qwen's
    for pair in (["(", "A"], ["(", "B"], ["(B", ")"]):
        state["model"]["merges"].append(pair)
        state["model"]["vocab"]["".join(pair)] = len(plain) + len(state["model"]["merges"]) - 1
    words = type(plain.backend_tokenizer).from_str(json.dumps(state))
    made = type(plain)(tokenizer_object=words, pad_token="<pad>", eos_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": tiny.SPECIALS})
    monkeypatch.setattr(tiny_llava, "tokenizer", lambda: made)
    return load_mlm(str(tiny.build("llava", tmp_path / "merged")))


def test_options_of_unequal_length_are_compared_by_the_token(merged: Mlm) -> None:
    tok = merged.processor.tokenizer
    counts = [len(tok(text)["input_ids"]) for text in ("(A)", "(B)", "(C)")]
    assert counts == [2, 1, 3]
    found = check(merged, questions(3), McqProtocol(max_new_tokens=3))
    assert [got.per_token for got in found] == [True] * 3


class Seen:
    """What goes through a model: tokens of each pass of its parts."""

    def __init__(self, mlm: Mlm):
        """Hook the language model, its head and the vision tower."""
        self.lm: list[tuple[int, ...]] = []
        self.head: list[tuple[int, ...]] = []
        self.vision = 0
        self.keys: list[int] = []
        mlm.lm.register_forward_hook(self._lm, with_kwargs=True)
        mlm.base.get_output_embeddings().register_forward_pre_hook(
            lambda module, args: self.head.append(tuple(args[0].shape[:-1]))
        )
        mlm.vision.register_forward_pre_hook(self._vision)

    def _lm(self, module: object, args: tuple, kwargs: dict, output: object) -> None:
        given = kwargs.get("input_ids")
        given = kwargs["inputs_embeds"][..., 0] if given is None else given
        self.lm.append(tuple(given.shape))
        self.keys.append(cache_of(output).layers[0].keys.shape[0])

    def _vision(self, module: object, args: tuple) -> None:
        self.vision += 1


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_the_prompt_runs_once_and_logits_are_few(name: str, load: Load) -> None:
    mlm = load(name)
    seen = Seen(mlm)
    asked = questions(3, images=1)
    found = answer(mlm, asked, McqProtocol(max_new_tokens=4))
    prompt, tree, *steps = seen.lm
    assert prompt[0] == 3 and prompt[1] > 40 and seen.vision == 1
    # "(", then A B C D: what stands after those is the last token of an answer.
    assert tree == (3, 5) and steps == [(3, 1)] * 4 and len(found) == 3
    assert (
        max(positions for _, positions in (s if len(s) == 2 else (s[0], 1) for s in seen.head)) == 5
    )
    assert set(seen.keys) == {3}  # no copy of the cache an option
    seen.lm.clear()
    score_options(mlm, asked, McqProtocol(form="A"))
    assert len(seen.lm) == 1  # one token an option: the prompt's own logits are enough


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_scoring_and_writing_leave_the_prefill_as_it_was(name: str, load: Load) -> None:
    mlm, asked = load(name), questions(3)
    protocol = McqProtocol(max_new_tokens=5)
    prefill = Prefill(mlm, mlm.encode([ask(q, protocol) for q in asked]))
    tree = option_tree([[(5, 6), (5, 7)]] * 3)
    scores, texts = prefill.option_logprobs(tree), prefill.write(5)
    assert prefill.cache.get_seq_length() == prefill.length
    assert prefill.write(5) == texts == [a.text for a in answer(mlm, asked, protocol)]
    prefill = Prefill(mlm, mlm.encode([ask(q, protocol) for q in asked]))
    assert prefill.write(5) == texts
    again = prefill.option_logprobs(tree)
    assert prefill.cache.get_seq_length() == prefill.length
    torch.testing.assert_close(again, scores)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_batches_do_not_move_answers(name: str, load: Load) -> None:
    mlm, asked = load(name), questions(5)
    whole, parts = (answer(mlm, asked, McqProtocol(batch=n, max_new_tokens=4)) for n in (5, 2))
    for a, b in zip(whole, parts, strict=True):
        assert a._replace(logprobs=()) == b._replace(logprobs=())
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    assert answer(mlm, asked, McqProtocol(batch=2, max_new_tokens=4)) == parts
    assert answer(mlm, [], McqProtocol()) == []


def test_a_batch_is_of_one_task() -> None:
    subtasks = ["B", "Art_Style", "B", "Art_Style", "B", "odd"]
    assert batches(subtasks, 2) == [[0, 2], [4], [1, 3], [5]]
    assert batches(subtasks, 8) == [[0, 2, 4], [1, 3], [5]] and batches([], 8) == []


def test_low_precision_works(load: Load) -> None:
    mlm = load("llava_next", dtype=torch.bfloat16)
    asked = questions(2)
    found = answer(mlm, asked, McqProtocol(max_new_tokens=3))
    for question, got in zip(asked, found, strict=True):
        sums = [sum(path) for path in naive_logprobs(mlm, question, McqProtocol())[0]]
        assert got.logprobs == pytest.approx(sums, rel=0.05)


def test_sampling_and_penalties_of_a_checkpoint_are_off(load: Load) -> None:
    mlm, asked = load("llava"), questions(4)
    protocol = McqProtocol(max_new_tokens=8)
    plain = [got.text for got in answer(mlm, asked, protocol)]
    generation = mlm.base.generation_config
    generation.do_sample, generation.temperature, generation.top_p = True, 5.0, 0.5
    generation.top_k, generation.repetition_penalty, generation.no_repeat_ngram_size = 3, 9.0, 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [got.text for got in answer(mlm, asked, protocol)] == plain
    # The penalties alone would change what is written.
    assert [naive_text(mlm, question, protocol) for question in asked] != plain


def test_the_letter_is_read_by_the_profile(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    mlm, asked = load("llava"), questions(2)
    monkeypatch.setattr(Prefill, "write", lambda self, n: ["It is right.", "Both"])
    kvfix, lmms = (answer(mlm, asked, McqProtocol(profile=p)) for p in ("kvfix", "lmms-eval"))
    assert [got.letter for got in kvfix] == ["B", None]
    assert [got.letter for got in lmms] == [None, "B"]


def test_a_template_that_moves_images_is_refused(load: Load) -> None:
    mlm = load("llava")
    template = mlm.processor.chat_template
    parts = "{% for c in m['content'] %}"
    assert parts in template
    mlm.processor.chat_template = template.replace(
        parts, "{% for c in m['content'] | sort(attribute='type') %}"
    )  # image before text
    assert score_options(mlm, questions(1), McqProtocol())
    with pytest.raises(
        ValueError, match="order: expected a chat template that prints the text bef"
    ):
        score_options(mlm, questions(1), McqProtocol(order="text-first"))


def test_what_cannot_be_scored_is_refused(load: Load) -> None:
    mlm, asked = load("llava"), questions(2)
    encoded = mlm.encode([ask(q, McqProtocol()) for q in asked], padding_side="right")
    with pytest.raises(ValueError, match="padded on the left, found padding on the right"):
        Prefill(mlm, encoded)
    with torch.no_grad():
        mlm.base.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(ValueError, match="expected finite logits, found NaN"):
        answer(mlm, asked, McqProtocol())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"_attn_implementation": "flash_attention_2"}, "expected sdpa or eager .* 'flash_attent"),
        (
            {"_attn_implementation": "sdpa", "sliding_window": 20},
            "shorter than the sliding window of 20 tokens, found",
        ),
    ],
)
def test_attention_that_cannot_follow_options_is_refused(
    config: dict, says: str, load: Load
) -> None:
    mlm = load("llava")
    encoded = mlm.encode([ask(q, McqProtocol()) for q in questions(1)])
    other = SimpleNamespace(lm=SimpleNamespace(config=SimpleNamespace(**config)))
    with pytest.raises(ValueError, match=says):
        Prefill(other, encoded)  # type: ignore[arg-type]


def test_a_row_is_what_compare_reads(tmp_path: Path) -> None:
    asked = questions(3)
    answers = [
        Answer("(A)", "A", (-1.0, -2.0), "A"),
        Answer("(A) or so", "A", (-3.0, -1.0, -2.5), "B", per_token=True),
        Answer("who knows", None, (-3.0, -1.0, -2.5, -4.0), "B"),
    ]
    rows = [question_row(q, "blink", a) for q, a in zip(asked, answers, strict=True)]
    assert [r.correct for r in rows] == [1, 0, 0]
    assert [r.logprob_correct for r in rows] == [1, 1, 0]
    assert [r.unparsed for r in rows] == [False, False, True]
    written = to_json(rows[1])
    asked_for = ("question", "options", "images")
    assert [written.pop(k) for k in asked_for] == [
        asked[1].question,
        list(asked[1].choices),
        [f"blink/q1/{k}" for k in range(len(asked[1].images))],
    ]
    assert written == {
        "kind": "answer",
        "id": "q1",
        "cluster": "q1",
        "task": "mcq",
        "subtask": "Jigsaw",
        "dataset": "blink",
        "control": None,
        "correct": 0,
        "letter": "A",
        "answer": "B",
        "unparsed": False,
        "logprob_correct": 1,
        "logprob_letter": "B",
        "logprobs": [-3.0, -1.0, -2.5],
        "per_token": True,
        "text": "(A) or so",
    }
    file = SampleFile(tmp_path / "samples/mcq.blink.jsonl")
    for one in rows:
        file.append([to_json(one)])
    (tmp_path / "run.json").write_text(json.dumps({"kind": "eval", "data": []}))
    side = read_side(tmp_path)
    assert [r.id for r in side.questions[Name("mcq", "blink")]] == ["q0", "q1", "q2"]


def test_a_question_with_a_placeholder_is_refused(load: Load) -> None:
    spoilt = replace(questions(1)[0], question="What is <image>?")
    with pytest.raises(ValueError, match="expected text without the placeholder"):
        answer(load("llava"), [spoilt], McqProtocol())
