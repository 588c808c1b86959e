"""Answers of transformers and PEFT, stored for our tests: writes `transformers/` beside itself.

    python -m venv .bench/llm && .bench/llm/bin/pip install torch==2.13.0 transformers==5.24.0 peft==0.21.2
    .bench/llm/bin/python tests/oracles/make_transformers.py

Run by hand, never by the tests. One folder for each family and kind of position, as `save_pretrained` writes it: random
weights, far from their initialisation. `answers.npz` has what they compute, by `numpy.load(path, allow_pickle=False)`:

`tokens` `[3,T]` and `start` `[3]`: padded on the left. `NAME/logits` `[3,T,V]`, which mean nothing where there is padding.
`NAME/greedy` `[3,G]`: what `generate` writes behind them.
`adapter/logits`: of `llama` with the LoRA in the folder `adapter`.
`scores.npz` (`--scores` writes it alone): by name `[3]`, what a `...ForSequenceClassification` of each folder's weights with the
head `linspace(-1, 1, D)` says of each row without its padding.
`chat.json`: texts and chats with their tokens, of the tokenizer in the folder `llama`.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import peft
import tokenizers
import torch
import transformers

OUT = Path(__file__).with_name("transformers")
T, G = 12, 6
START = np.array([0, 3, 7])
SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "attn_implementation": "eager", "eos_token_id": 1,
    "bos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8}  # fmt: skip
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES),
    "llama-biases": transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama3": transformers.LlamaConfig(**SIZES, head_dim=8, rope_parameters=LLAMA3),
    "linear": transformers.LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=4),
    "qwen2": transformers.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=2),
    "yarn": transformers.Qwen2Config(
        **SIZES, rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 8}
    ),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=8),
    "gemma": transformers.GemmaConfig(**SIZES, head_dim=8),
    "gemma2": transformers.Gemma2Config(**SIZES, head_dim=8, sliding_window=4, query_pre_attn_scalar=12, layer_types=KINDS),
    "gemma3": transformers.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=4, query_pre_attn_scalar=12, layer_types=KINDS),
}
TEXT = ["The quick brown fox jumps over the lazy dog, again and again.", "Numbers: 12 and 345; don't stop.", "Zoë counts to three.\n\n  Then she rests."]
TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' -%}{{ '<s>' + messages[0]['content'] + '</s>' }}{%- endif -%}"
    "{% for message in messages %}{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role') }}{% endif %}{% if message['role'] != 'system' %}\n"
    "    {{- '<s>' + message.role + ': ' + message.content | trim + eos_token }}\n{% endif %}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)


def main() -> None:
    """Ask everything and write the folders."""
    shutil.rmtree(OUT, ignore_errors=True)
    tokens = np.random.default_rng(0).integers(2, SIZES["vocab_size"], (len(START), T))
    answers = {"tokens": tokens, "start": START}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        for parameter_name, parameter in model.named_parameters():
            small = "norm" in parameter_name or "bias" in parameter_name
            parameter.data += torch.randn_like(parameter) * (0.1 if small else 0.2)
        model.save_pretrained(OUT / name)
        (OUT / name / "generation_config.json").unlink(missing_ok=True)
        answers[f"{name}/logits"], answers[f"{name}/greedy"] = ask(model, tokens)
        if name == "llama":
            settings = peft.LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
            model = peft.get_peft_model(model, settings)
            for parameter_name, parameter in model.named_parameters():
                if "lora" in parameter_name:
                    parameter.data += torch.randn_like(parameter) * 0.2
            model.eval().save_pretrained(OUT / "adapter")
            (OUT / "adapter" / "README.md").unlink(missing_ok=True)
            answers["adapter/logits"], _ = ask(model, tokens)
    np.savez_compressed(OUT / "answers.npz", **answers)
    words()


def scores() -> None:
    """What reward models of these weights say."""
    answers = np.load(OUT / "answers.npz", allow_pickle=False)
    found = {}
    for name in CONFIGS:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(OUT / name, num_labels=1).eval()
        model.score.weight.data = torch.linspace(-1, 1, model.score.weight.shape[1])[None]
        rows = [torch.tensor(row[first:])[None] for row, first in zip(answers["tokens"], START, strict=True)]
        with torch.no_grad():
            found[name] = np.array([float(model.model(row).last_hidden_state[0, -1] @ model.score.weight[0]) for row in rows], np.float32)
            # Its own choice of the last token agrees, where that is no padding token.
            whole = np.array([float(model(row).logits) for row in rows if row[0, -1] != model.config.pad_token_id])
        kept = [row[0, -1] != model.config.pad_token_id for row in rows]
        assert np.allclose(whole, found[name][kept], atol=1e-5), name
    np.savez_compressed(OUT / "scores.npz", **found)


def ask(model: torch.nn.Module, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the batch, and what it writes behind."""
    mask = torch.tensor(np.arange(T)[None] >= START[:, None]).long()
    positions = torch.tensor(np.maximum(np.arange(T)[None] - START[:, None], 0))
    with torch.no_grad():
        logits = model(torch.tensor(tokens), attention_mask=mask, position_ids=positions).logits
        written = model.generate(
            input_ids=torch.tensor(tokens), attention_mask=mask, max_new_tokens=G, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return logits.numpy(), written[:, T:].numpy()


def words() -> None:
    """A tokenizer of bytes and a few merges, and what it makes of texts and chats."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=sorted(alphabet), show_progress=False)
    backend.train_from_iterator(TEXT, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(OUT / "llama")
    chats = [
        [{"role": "user", "content": "The fox? "}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}, {"role": "assistant", "content": "1, 2"}],
    ]
    tools = [{"name": "add", "text": "é <x>"}]
    found = {
        "texts": [[text, tokenizer(text).input_ids] for text in TEXT],
        "chats": [
            [chat, {"add_generation_prompt": begin, "tools": given}, tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=begin, tools=given)]
            for chat in chats
            for begin in (False, True)
            for given in (None, tools)
        ],
    }
    (OUT / "chat.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--scores" not in sys.argv:
        main()
    scores()
