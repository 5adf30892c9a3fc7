"""A model of this package for lm-evaluation-harness (0.4.13). Importing this needs the extra ``lm-eval``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Final

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ..errors import ArgumentError
from ..kernels.dispatch import Mode
from ..runtime.devices import find_placement
from ..runtime.loader import load_opened
from ..runtime.opening import open_model
from ..runtime.text.chat_template import ChatTemplate

DEFAULT_BATCH: Final = 8
NEW_TOKENS: Final = 256
"""Default length of a generated answer, as for the harness's own models."""
_SAMPLING: Final = frozenset({"temperature", "top_k", "top_p", "min_p", "repetition_penalty"})

Pair = tuple[list[int], list[int]]
"""Token ids of a context (at least one), and of its continuation."""


@register_model("int8conv")
class Int8convLM(TemplateLM):  # type: ignore[misc]
    """Answers the harness's three kinds of request: likelihoods, rolling likelihoods, and generated text."""

    def __init__(
        self,
        pretrained: str,
        mode: Mode | None = None,
        dtype: str | None = None,
        device: str | None = None,
        kv_cache: str | None = None,
        batch_size: int | str | None = None,
        max_length: int | str | None = None,
        **_: object,  # what the harness passes to every model
    ) -> None:
        """Like ``int8conv.load``, but a converted folder runs in W8A8 by default, as prompts do: with a mode chosen by the number of
        tokens, the batch size would change the scores."""
        super().__init__()
        opened = open_model(pretrained)
        if opened.converted is not None:
            mode = mode or "w8a8"
        self.model = load_opened(
            opened, find_placement(device or "cpu"), mode, dtype, kv_cache=kv_cache
        )
        self.batch_size = DEFAULT_BATCH if batch_size in (None, "auto") else int(str(batch_size))
        self.max_length = int(max_length or self.model.config.max_positions)
        self._name = str(pretrained)

    @property
    def tokenizer_name(self) -> str:
        """Part of the harness's cache keys."""
        return self._name.replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        return min(self.model.end_tokens, default=0)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context: the one that the tokenizer prepends, or the end-of-text token."""
        return next(iter(self.model.tokenizer.encode("")), self.eot_token_id)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        return self.model.tokenizer.encode(string, special=add_special_tokens is not False)

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate.load(self.model.folder)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self._template.render(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's source, which the harness records."""
        return self._template.source if chat_template else ""

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:  # fmt: skip
        """Likelihoods of ``(texts, context, continuation)``; a context that is too long is truncated at its beginning."""
        pairs = [self._fitted(context, following) for _, context, following in requests]
        with tqdm(total=len(pairs), desc="int8conv: likelihoods", disable=disable_tqdm) as bar:
            scores = self.model.score(
                pairs, self.batch_size, progress=lambda _, done, total: bar.update(done - bar.n)
            )
        answers = [(each.total, each.is_greedy) for each in scores]
        for (texts, _context, _following), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    # requests are instances of classes without types
    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Likelihoods of whole texts, in windows of the context length whose predictions do not overlap."""
        texts = [request.args[0] for request in requests]
        windows = [list(self._windows(text)) for text in texts]
        flat = [(None, *window) for each in windows for window in each]
        scores = iter(self._loglikelihood_tokens(flat, disable_tqdm))
        totals = [sum(next(scores)[0] for _ in each) for each in windows]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    # requests are instances of classes without types
    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue prompts, in batches with the same options; a prompt that is too long is truncated at its beginning."""
        answers = [""] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: (str(requests[i].args[1]), len(requests[i].args[0])))  # fmt: skip
        with tqdm(total=len(requests), desc="int8conv: texts", disable=disable_tqdm) as bar:
            while order:
                options = requests[order[0]].args[1]
                batch = [i for i in order[: self.batch_size] if requests[i].args[1] == options]
                order = order[len(batch) :]
                for i, text in zip(batch, self._generate([requests[i].args[0] for i in batch], options), strict=True):  # fmt: skip
                    answers[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                bar.update(len(batch))
        return answers

    def _generate(self, prompts: Sequence[str], options: dict[str, Any]) -> list[str]:
        wanted = normalize_gen_kwargs(options, NEW_TOKENS)
        stop, most = wanted.pop("until"), wanted.pop("max_gen_toks")
        wanted.pop("do_sample", None)  # the temperature says it
        if unknown := wanted.keys() - _SAMPLING:
            raise ArgumentError("generation_kwargs of the task", found=", ".join(sorted(unknown)),
                                expected=", ".join(sorted(_SAMPLING)))  # fmt: skip
        room = self.max_length - most
        if room < 1:
            raise ArgumentError("max_gen_toks of the task", expected=f"below {self.max_length}", found=most)  # fmt: skip
        ids = [self.tok_encode(prompt)[-room:] for prompt in prompts]
        done = self.model.generate_batch(ids, max_new_tokens=most, stop=stop, **wanted)
        return [each.text for each in done]

    def _windows(self, text: str) -> Iterator[Pair]:
        ids = self.tok_encode(text, add_special_tokens=False)
        for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
            yield make_disjoint_window(window)

    def _fitted(self, context: list[int], following: list[int]) -> Pair:
        if len(following) > self.max_length:
            raise ArgumentError("continuation of a task", expected=f"at most {self.max_length} tokens",
                                found=len(following))  # fmt: skip
        ids = [*context, *following][-(self.max_length + 1) :]  # the last is predicted, not read
        split = len(ids) - len(following)
        return ids[:split], ids[split:]
