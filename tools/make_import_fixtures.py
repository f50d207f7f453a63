#!/usr/bin/env python3
"""Makes the files that tests/train/import_test.cpp reads: small models of the transformers library, saved as it saves
them, with inputs and the logits that it computes.

  python3 tools/make_import_fixtures.py [tests/train/fixtures]

Needs torch (the CPU is enough), transformers, safetensors, pillow. For each family a folder with config.json, the
weights (model.safetensors, or several files with an index), what transformers says of its inputs, and
expected.safetensors.
"""
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file

BATCH, TOKENS = 2, 11


def randomize(model, generator):
    """Weights, norms and biases far from their starting values, so that none of them can be forgotten unnoticed."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name.lower() or ".ln_" in name
            if parameter.dim() == 1 and is_norm:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(noise * (0.3 if parameter.dim() == 1 else 1.5 / parameter.shape[-1] ** 0.5))


def random_tokens(vocabulary, generator):
    return torch.randint(vocabulary, (BATCH, TOKENS), generator=generator)


def gpt2(generator):
    config = transformers.GPT2Config(
        vocab_size=61, n_positions=16, n_embd=24, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config), {"input_ids": random_tokens(61, generator)}, {}


def gemma(generator):
    config = transformers.GemmaConfig(
        vocab_size=61, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=32, rope_theta=500.0)
    return transformers.GemmaForCausalLM(config), {"input_ids": random_tokens(61, generator)}, {}


def bert(generator):
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3,
        max_position_embeddings=16, num_labels=3)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    mask[1, 7:] = 0
    kinds = (torch.arange(TOKENS) >= 5).long().expand(BATCH, TOKENS).contiguous()
    inputs = {"input_ids": random_tokens(61, generator), "attention_mask": mask, "token_type_ids": kinds}
    return transformers.BertForSequenceClassification(config), inputs, {}


def vit(generator):
    config = transformers.ViTConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=12, patch_size=4,
        num_channels=3, num_labels=5)
    images = torch.randn(BATCH, 3, 12, 12, generator=generator)
    return transformers.ViTForImageClassification(config), {"pixel_values": images}, {}


def vit_grey(generator):
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=12, patch_size=4,
        num_channels=1, id2label={0: "circle", 1: "square", 2: "line"})
    pixels = torch.randint(256, (BATCH, 12, 12), generator=generator, dtype=torch.int32)
    processor = transformers.ViTImageProcessorPil(size={"height": 12, "width": 12}, image_mean=[0.4], image_std=[0.3])
    images = [image[:, :, None].numpy().astype("uint8") for image in pixels]
    inputs = processor(images, input_data_format="channels_last", return_tensors="pt")
    return transformers.ViTForImageClassification(config), dict(inputs), {"pixels": pixels}, processor


def bert_texts(generator):
    reviews = [("good", "A fine film, really fine!"), ("bad", "Naïve & dull..."), ("good", "Good"),
               ("bad", "no: the film is a zoo of bad acting, and of 3 plots")]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters), *",.!:&", "film", "##ing"]
    tokenizer = transformers.BertTokenizer({piece: i for i, piece in enumerate(pieces)})
    config = transformers.BertConfig(
        vocab_size=70, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=48, id2label={0: "good", 1: "bad"})
    inputs = tokenizer([text for _, text in reviews], padding=True, return_tensors="pt")
    tsv = "".join(f"{label}\t{text}\n" for label, text in reviews)
    return transformers.BertForSequenceClassification(config), dict(inputs), {"texts.tsv": tsv}, tokenizer


# From a generator: the model, its inputs, what they were made from (tensors, or texts by the names of their files), and
# what made them.
FAMILIES = {"gpt2": gpt2, "gemma": gemma, "bert": bert, "vit": vit, "vit_grey": vit_grey, "bert_texts": bert_texts}


def main():
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/train/fixtures")
    for seed, (name, make) in enumerate(FAMILIES.items()):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        model, inputs, sources, *processors = make(generator)
        randomize(model, generator)
        model.eval()
        with torch.no_grad():
            logits = model(**inputs).logits
        folder = target / name
        # Gemma's in several files, as large models are.
        model.save_pretrained(folder, max_shard_size="30KB" if name == "gemma" else "1GB")
        (folder / "generation_config.json").unlink(missing_ok=True)
        for processor in processors:
            processor.save_pretrained(folder)
        tensors = {key: source for key, source in sources.items() if torch.is_tensor(source)}
        for file in sources.keys() - tensors.keys():
            (folder / file).write_text(sources[file], encoding="utf-8")
        save_file({**inputs, **tensors, "logits": logits.contiguous()}, folder / "expected.safetensors")
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, logits up to {logits.abs().max():.3f}")


if __name__ == "__main__":
    main()
