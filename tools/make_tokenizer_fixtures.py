#!/usr/bin/env python3
"""Makes the files that tests/train/import_tokenizer_test.cpp reads: small tokenizers of the transformers library, saved as
it saves them (bert.json, gpt2.json), and the ids that it gives to texts (cases.json).

  python3 tools/make_tokenizer_fixtures.py TEXT... [--out tests/train/fixtures/tokenizers]

TEXT: files to learn from and to take lines from; the fixtures in the repository are of the movie reviews of Pang and
Lee (CC BY 4.0), then the plays of Shakespeare. Needs transformers (and with it tokenizers).
"""
import argparse
import json
import pathlib
import random
import tempfile

import tokenizers
import transformers

EDGES = [
    "", " ", "\t\n\r", "a", "A-b_c", "don't... stop!?", "x" * 101, "x" * 100, "1,234.5 €", "naïve café Ångström",
    "e\u0301 \u00e9 \u1e69 s\u0323\u0307", "İstanbul ISPARTA ıı", "ΣΊΣΥΦΟΣ", "Привет, мир!", "שָׁלוֹם עולם", "مرحبا بالعالم",
    "नमस्ते दुनिया", "ภาษาไทย", "한국어 글자", "漢字かな交じり文。", "中文，标点！", "\U00020000\U0002f81a豈", "“quoted” — dash… ¿qué?",
    "soft\u00adhyphen zero\u200bwidth bom\ufeff", "no\u00a0break\u2003em\u3000wide\u2028line", "bell\x07 \x0b\x0c\x1f\x7f\x85 end",
    "\ufffd replaced", "emoji 😀👍🏽 flags 🇩🇪", "x²+y³=½ №5 Ⅷ", "ﬁne ﬂow", "ǅ ǆ ẞ ß", "'s 't 're 've 'm 'll 'd I'LL he'd",
    "tab\tand  two   spaces    four", "trailing spaces   ", "line\n\nbreaks\r\nof \n kinds", "a1b22c333 4.5e-6", "_ __ $$ ```",
    "http://example.org/a?b=c&d=%20", "<b>bold</b> {json: [1, 2]}", "\u0000nul",
]
# Blocks that random strings are drawn from: of characters that every version of Unicode in use treats alike.
BLOCKS = [(0x20, 0x7e), (0xa0, 0x17f), (0x370, 0x3ff), (0x400, 0x4ff), (0x5d0, 0x5ea), (0x900, 0x97f), (0x1e00, 0x1eff),
          (0x2010, 0x2027), (0x3041, 0x3093), (0x4e00, 0x4eff), (0xac00, 0xacff), (0x300, 0x34e), (0x1f600, 0x1f64f)]


def random_texts(count, random):
    for _ in range(count):
        blocks = random.sample(BLOCKS, 2) + [(0x61, 0x7a), (0x20, 0x20)]
        yield "".join(chr(random.randint(*random.choice(blocks))) for _ in range(random.randint(1, 24)))


def texts_of(paths):
    chooser = random.Random(1)
    texts = list(EDGES) + list(random_texts(120, chooser))
    for path in paths:
        lines = [line.strip()[:110] for line in open(path, encoding="utf-8") if line.strip()]
        texts += chooser.sample(lines, 150)
    return texts


def learn(trained, trainer, texts):
    trained.train_from_iterator(texts, trainer)
    return json.loads(trained.to_str())["model"]


def save(tokenizer, path):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path.write_bytes((pathlib.Path(folder) / "tokenizer.json").read_bytes())


def bert(texts):
    """Cased and uncased with one vocabulary, which holds pieces for both."""
    trained = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=1500, limit_alphabet=500, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    uncased = tokenizers.normalizers.BertNormalizer()
    vocabulary = learn(trained, trainer, texts + [uncased.normalize_str(text) for text in texts])["vocab"]
    return {name: transformers.BertTokenizer(vocabulary, do_lower_case=name == "uncased") for name in ("uncased", "cased")}


def gpt2(texts):
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000, special_tokens=["<|endoftext|>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = learn(trained, trainer, texts)
    return transformers.GPT2Tokenizer(model["vocab"], [tuple(merge) for merge in model["merges"]])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/train/fixtures/tokenizers"))
    arguments = parser.parse_args()
    texts = texts_of(arguments.texts)
    arguments.out.mkdir(parents=True, exist_ok=True)
    known = {**bert(texts), "gpt2": gpt2(texts)}
    save(known["uncased"], arguments.out / "bert.json")
    save(known["gpt2"], arguments.out / "gpt2.json")
    cases = {"texts": texts}
    for name, tokenizer in known.items():
        cases[name] = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        print(f"{name}: {len(tokenizer)} tokens, {sum(map(len, cases[name]))} in {len(texts)} texts")
    lines = [f"{json.dumps(key)}: [\n" + ",\n".join(map(json.dumps, values)) + "]" for key, values in cases.items()]
    (arguments.out / "cases.json").write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()
