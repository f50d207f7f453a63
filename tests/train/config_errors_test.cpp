#include <gtest/gtest.h>

#include <cctype>
#include <string>
#include <vector>

#include "core/error.h"
#include "tests/support/temporary_folder.h"
#include "train/config.h"

// Bad configurations and, to the letter, what the program says about them.
namespace switchyard::train {
namespace {

using namespace switchyard::testing;

struct BadConfig {
  std::string text;
  std::string message;
};

void expect_messages(const std::vector<BadConfig>& table) {
  for (const BadConfig& bad : table) {
    const std::string message = error_of([&] { parse_config<Config>(bad.text, "c.json"); });
    EXPECT_EQ(message, bad.message) << "for " << bad.text;
    EXPECT_EQ(message.find('\n'), std::string::npos) << "one line, for " << bad.text;
  }
}

std::string nested(int levels) {
  return std::string(static_cast<std::size_t>(levels), '[') + std::string(static_cast<std::size_t>(levels), ']');
}

TEST(ConfigErrors, MalformedJson) {
  expect_messages({
      {"", "config: c.json: is empty, expected a JSON object: { ... }"},
      {" \n\t", "config: c.json: is empty, expected a JSON object: { ... }"},
      {"{", "config: c.json: line 1, column 2: the JSON ends too early"},
      {"{\"model\": {\n  \"width\": 8", "config: c.json: line 2, column 13: the JSON ends too early"},
      {"{\"model\": {},}", "config: c.json: line 1, column 14: not valid JSON at '}'"},
      {"{\"model\": {}\n\"data\": {}}", "config: c.json: line 2, column 1: not valid JSON at '\"'"},
      {"{'model': {}}", "config: c.json: line 1, column 2: not valid JSON at '''"},
      {"// small\n{}", "config: c.json: line 1, column 1: not valid JSON at '/'"},
      {"{} {}", "config: c.json: line 1, column 4: more text after the end of the JSON"},
      {"{\"model\": {\"dropout\": NaN}}", "config: c.json: line 1, column 23: not valid JSON at 'N'"},
      {"{\"model\": {\"width\": 0x10}}", "config: c.json: line 1, column 22: not valid JSON at 'x'"},
      {"{\"model\": {\"norm\": \"\xff\"}}", "config: c.json: line 1, column 21: not valid JSON"},
      {"[]", "config: c.json: holds [], expected a JSON object: { ... }"},
      {"4", "config: c.json: holds 4, expected a JSON object: { ... }"},
      {"null", "config: c.json: holds null, expected a JSON object: { ... }"},
      {nested(40), "config: c.json: line 1, column 33: nested deeper than 32 levels"},
      {"{\"model\": {\"width\": 8,\n\"width\": 16}}", "config: c.json: line 2, column 7: key \"width\" is given twice"},
      {"{\"data\": {}, \"data\": {}}", "config: c.json: line 1, column 19: key \"data\" is given twice"},
  });
}

TEST(ConfigErrors, UnknownKeys) {
  expect_messages({
      {R"({"modle": {}})",
       "config: modle: unknown key (with value {}), did you mean model? Expected model, data, training, optimizer or "
       "output"},
      {R"({"": 1})", "config: \"\": unknown key (with value 1), expected model, data, training, optimizer or output"},
      {R"({"data": {"tokeniser": {"kind": "bytes"}}})",
       "config: data.tokeniser: unknown key (with value {\"kind\":\"bytes\"}), did you mean data.tokenizer? Expected "
       "files, validation_files, validation_fraction, validation_windows, respect_documents, mode "
       "or tokenizer"},
      {R"({"optimizer": {"schedule": {"warmup": 100}}})",
       "config: optimizer.schedule.warmup: unknown key (with value 100), expected kind, warmup_steps or "
       "final_fraction"},
      {R"({"optimizer": {"warmup_steps": 100}})",
       "config: optimizer.warmup_steps: unknown key (with value 100), did you mean optimizer.schedule.warmup_steps? "
       "Expected kind, learning_rate, beta1, beta2, epsilon, momentum, weight_decay, decay_all or schedule"},
      {R"({"data": {"tokenizer": {"Kind": "bytes"}}})",
       "config: data.tokenizer.Kind: unknown key (with value \"bytes\"), did you mean data.tokenizer.kind? Expected "
       "kind, vocabulary_size or model"},
      {R"({"model.width": 8})",
       "config: model.width: unknown key (with value 8), expected model, data, training, optimizer or output"},
      {"{\"a b\": 1}",
       "config: \"a b\": unknown key (with value 1), expected model, data, training, optimizer or output"},
      {R"({"output": {"temperature": "0.8, or whatever seems best to whoever happens to be reading this"}})",
       "config: output.temperature: unknown key (with value \"0.8, or whatever seems best to whoever happens to be "
       "rea...), expected folder, name, sample_length, sample_prompt or sample_temperature"},
  });
}

TEST(ConfigErrors, WrongTypes) {
  expect_messages({
      {R"({"model": 3})", "config: model: 3 is a number, expected a section: { ... }"},
      {R"({"model": {"attention": []}})", "config: model.attention: [] is a list, expected a section: { ... }"},
      {R"({"model": {"layers": "four"}})",
       "config: model.layers: \"four\" is a string, expected an integer from 1 to 1024"},
      {R"({"model": {"layers": null}})",
       "config: model.layers: null is not a value, expected an integer from 1 to 1024"},
      {R"({"model": {"layers": {"count": 4}}})",
       "config: model.layers: {\"count\":4} is a section, expected an integer from 1 to 1024"},
      {R"({"model": {"layers": 2.5}})", "config: model.layers: 2.5 is not a whole number, expected 1 to 1024"},
      {R"({"model": {"layers": true}})", "config: model.layers: true is a boolean, expected an integer from 1 to 1024"},
      {R"({"model": {"dropout": "0.1"}})",
       "config: model.dropout: \"0.1\" is a string, expected a number, 0 or more and below 1"},
      {R"({"model": {"tie_embeddings": 1}})", "config: model.tie_embeddings: 1 is a number, expected true or false"},
      {R"({"model": {"norm": 1}})", "config: model.norm: 1 is a number, expected \"layernorm\" or \"rmsnorm\""},
      {R"({"model": {"norm": "batchnorm"}})",
       "config: model.norm: \"batchnorm\" is unknown, expected \"layernorm\" or \"rmsnorm\""},
      {R"({"model": {"kind": "encoder"}})", "config: model.kind: \"encoder\" is unknown, expected \"decoder\""},
      {R"({"model": {"position": "alibi"}})",
       "config: model.position: \"alibi\" is unknown, expected \"rope\", \"xl\", \"none\" or \"learned\""},
      {R"({"model": {"feedforward": {"activation": "tanh"}}})",
       "config: model.feedforward.activation: \"tanh\" is unknown, expected \"relu\", \"gelu\", \"gelu_tanh\" or "
       "\"silu\""},
      {R"({"model": {"attention": {"experts_on": "v"}}})",
       "config: model.attention.experts_on: \"v\" is a string, expected a list of \"q\", \"k\", \"v\" or \"o\""},
      {R"({"model": {"attention": {"experts_on": ["v", "w"]}}})",
       "config: model.attention.experts_on[1]: \"w\" is unknown, expected \"q\", \"k\", \"v\" or \"o\""},
      {R"({"data": {"files": "a.txt"}})", "config: data.files: \"a.txt\" is a string, expected a list of strings"},
      {R"({"data": {"files": ["a.txt", 7]}})", "config: data.files[1]: 7 is a number, expected a string"},
      {R"({"output": {"name": false}})", "config: output.name: false is a boolean, expected a string"},
      {R"({"training": {"dtype": "f16"}})", "config: training.dtype: \"f16\" is unknown, expected \"f32\" or \"bf16\""},
  });
}

TEST(ConfigErrors, OutOfRange) {
  expect_messages({
      {R"({"model": {"attention": {"heads": -2}}})",
       "config: model.attention.heads: -2 is out of range, expected 1 to 1024"},
      {R"({"model": {"width": 0}})", "config: model.width: 0 is out of range, expected 1 to 65536"},
      {R"({"model": {"width": 1e30}})", "config: model.width: 1e+30 is out of range, expected 1 to 65536"},
      {R"({"model": {"width": 18446744073709551615}})",
       "config: model.width: 18446744073709551615 is out of range, expected 1 to 65536"},
      {R"({"training": {"seed": 9223372036854775808}})",
       "config: training.seed: 9223372036854775808 is out of range, expected 0 to 9223372036854775807"},
      {R"({"model": {"width": 1e999}})", "config: model.width: a number too large to hold, expected 1 to 65536"},
      {R"({"optimizer": {"learning_rate": 1e999}})",
       "config: optimizer.learning_rate: a number too large to hold, expected 0 to 1000"},
      {R"({"model": {"dropout": 1}})", "config: model.dropout: 1 is out of range, expected 0 or more and below 1"},
      {R"({"model": {"rope_fraction": 1.5}})", "config: model.rope_fraction: 1.5 is out of range, expected 0 to 1"},
      {R"({"model": {"rope_base": 1}})", "config: model.rope_base: 1 is out of range, expected more than 1"},
      {R"({"optimizer": {"weight_decay": -0.01}})",
       "config: optimizer.weight_decay: -0.01 is out of range, expected 0 to 1000"},
      {R"({"optimizer": {"learning_rate": 0}})",
       "config: optimizer.learning_rate: 0 trains nothing, expected more than 0"},
      {R"({"optimizer": {"epsilon": 0}})",
       "config: optimizer.epsilon: 0 makes 0 / 0 of a gradient that is 0, expected more than 0"},
      {R"({"training": {"keep_checkpoints": 0}})",
       "config: training.keep_checkpoints: 0 is out of range, expected 1 to 10000"},
      {R"({"training": {"device": "gpu"}})",
       "config: training.device: \"gpu\" is unknown, expected \"cpu\", \"cuda\" or \"cuda:<index>\""},
      {R"({"training": {"device": "cuda:-1"}})",
       "config: training.device: \"cuda:-1\" is unknown, expected \"cpu\", \"cuda\" or \"cuda:<index>\""},
      {R"({"output": {"name": "../../home"}})",
       "config: output.name: \"../../home\" is no folder name, expected at most 100 letters, digits, '-', '_' and '.', "
       "not starting with '.'"},
      {R"({"output": {"folder": ""}})", "config: output.folder: \"\" is empty, expected a folder"},
      {R"({"data": {"files": [""]}})", "config: data.files[0]: \"\" is empty, expected a file or folder"},
  });
}

TEST(ConfigErrors, ImpossibleCombinations) {
  expect_messages({
      {R"({"model": {"width": 100, "attention": {"heads": 3}}})",
       "config: model.attention.heads: 3 does not divide model.width 100, expected a divisor of it or "
       "model.attention.head_width"},
      {R"({"model": {"attention": {"kind": "dense", "heads": 4, "key_value_heads": 3}}})",
       "config: model.attention.key_value_heads: 3 does not divide the 4 heads, expected a divisor, or 0 for as many"},
      {R"({"model": {"attention": {"key_value_heads": 1}}})",
       "config: model.attention.key_value_heads: 1 is only possible with attention \"dense\", expected 0 with "
       "attention "
       "\"switchhead\""},
      {R"({"model": {"attention": {"bias": true}}})",
       "config: model.attention.bias: true is only possible with attention \"dense\", expected false with attention "
       "\"switchhead\""},
      {R"({"model": {"attention": {"head_width": 66}}})",
       "config: model.rope_fraction: 0.5 of head width 66 rotates 33 channels, expected an even number"},
      {R"({"model": {"position": "xl", "width": 33, "attention": {"head_width": 8}}})",
       "config: model.width: 33 is odd, expected an even width with position \"xl\""},
      {R"({"model": {"memory": 64}})",
       "config: model.memory: 64 is only possible with position \"xl\", expected 0 with position \"rope\""},
      {R"({"model": {"position": "xl", "memory": 64}})",
       "config: data.mode: \"random\" is not possible with model.memory 64, expected \"contiguous\""},
      {R"({"model": {"attention": {"experts": 4, "k": 5}}})",
       "config: model.attention.k: 5 is more than the 4 experts, expected 1 to 4"},
      {R"({"model": {"feedforward": {"experts": 8, "k": 9}}})",
       "config: model.feedforward.k: 9 is more than the 8 experts, expected 1 to 8"},
      {R"({"model": {"feedforward": {"experts": 1, "k": 2}}})",
       "config: model.feedforward.k: 2 is more than the 1 expert, expected 1"},
      {R"({"model": {"attention": {"selection": "sinkmoid"}}})",
       "config: model.attention.selection: \"sinkmoid\" is not possible in attention, expected \"sigmoid\" or "
       "\"softmax\""},
      {R"({"model": {"attention": {"experts_on": []}}})",
       "config: model.attention.experts_on: [] is empty, expected some of \"q\", \"k\", \"v\", \"o\""},
      {R"({"model": {"attention": {"experts_on": ["v", "o", "v"]}}})",
       "config: model.attention.experts_on: [\"v\", \"o\", \"v\"] names \"v\" twice, expected each projection once"},
      {R"({"model": {"attention": {"experts_on": ["v"], "shared_selection": true}}})",
       "config: model.attention.shared_selection: true has nothing to share, expected two or more projections in "
       "experts_on, got [\"v\"]"},
      {R"({"model": {"feedforward": {"kind": "dense", "width": 512, "width_multiplier": 2}}})",
       "config: model.feedforward.width: 512 is given beside width_multiplier 2, expected only one of the two"},
      {R"({"model": {"feedforward": {"kind": "glu", "width_multiplier": 0.001}}})",
       "config: model.feedforward.width_multiplier: 0.001 of model.width 256 leaves no neuron, expected at least 1 / "
       "model.width"},
      {R"({"model": {"vocabulary_size": 100}})",
       "config: model.vocabulary_size: 100 is too small, expected 0 or at least 256 with tokenizer \"bytes\""},
      {R"({"model": {"vocabulary_size": 100}, "data": {"tokenizer": {"kind": "sentencepiece"}}})",
       "config: model.vocabulary_size: 100 is too small, expected 0 or at least the tokenizer's 8000"},
      {R"({"data": {"tokenizer": {"model": "pieces.model"}}})",
       "config: data.tokenizer.model: \"pieces.model\" is given, expected none with tokenizer \"bytes\""},
      {R"({"data": {"validation_fraction": 0}})",
       "config: data.validation_fraction: 0 leaves nothing to validate on, expected more than 0 or validation_files"},
      {R"({"data": {"mode": "contiguous", "respect_documents": true}})",
       "config: data.respect_documents: true is not possible with data.mode \"contiguous\", expected false"},
      {R"({"training": {"batch": 16, "gradient_accumulation": 3}})",
       "config: training.gradient_accumulation: 3 does not divide training.batch 16, expected a divisor of it"},
      {R"({"training": {"steps": 100}, "optimizer": {"schedule": {"warmup_steps": 200}}})",
       "config: optimizer.schedule.warmup_steps: 200 is more than training.steps 100, expected at most that"},
      {R"({"optimizer": {"momentum": 0.9}})",
       "config: optimizer.momentum: 0.9 is not possible with optimizer \"adamw\", expected 0 (adamw has beta1)"},
  });
}

TEST(ConfigErrors, Overrides) {
  const auto message = [](std::vector<std::string> overrides) {
    return error_of([&] { parse_config<Config>(R"({"model": {"layers": 2}})", "c.json", overrides); });
  };
  EXPECT_EQ(message({"model.layers"}),
            "config: --set \"model.layers\": expected <key>=<value>, such as model.layers=4");
  EXPECT_EQ(message({"=4"}), "config: --set \"=4\": expected <key>=<value>, such as model.layers=4");
  EXPECT_EQ(message({"model.layers.deep=4"}), "config: --set model.layers.deep: model.layers is 2 and no section");
  EXPECT_EQ(message({"model.layers=many"}),
            "config: model.layers: \"many\" is a string, expected an integer from 1 to 1024");
  EXPECT_EQ(message({"model.layers="}), "config: model.layers: \"\" is a string, expected an integer from 1 to 1024");
  EXPECT_EQ(message({"model=[1]"}), "config: model: [1] is a list, expected a section: { ... }");
  EXPECT_EQ(message({"trainning.steps=4"}),
            "config: trainning: unknown key (with value {\"steps\":4}), did you mean training? Expected model, data, "
            "training, optimizer or output");
  EXPECT_EQ(message({"model..width=4"}).substr(0, 40), "config: model.\"\": unknown key (with valu");
}

TEST(ConfigErrors, Files) {
  const TemporaryFolder folder;
  const std::string missing = (folder / "none.json").string();
  EXPECT_EQ(error_of([&] { load_config<Config>(missing); }),
            "config: " + missing + ": cannot be opened: No such file or directory");
  EXPECT_EQ(error_of([&] { load_config<Config>(folder.path()); }),
            "config: " + folder.path().string() + ": is a folder, expected a JSON file");
  const std::string large = (folder / "large.json").string();
  write_bytes(large, std::string((1 << 20) + 1, ' '));
  EXPECT_EQ(error_of([&] { load_config<Config>(large); }),
            "config: " + large + ": is too large, expected at most 1048576 bytes");
  EXPECT_EQ(error_of([&] { load_config<Config>("/dev/zero"); }),
            "config: /dev/zero: is too large, expected at most 1048576 bytes");
  EXPECT_EQ(error_of([&] { load_config<Config>("/dev/null"); }),
            "config: /dev/null: is empty, expected a JSON object: { ... }");
}

// Whatever bytes a file holds, the answer is a config or one line.
TEST(ConfigErrors, DamagedTextGivesOneLine) {
  const std::string good =
      R"({"model": {"width": 64, "attention": {"heads": 4, "experts_on": ["v"]}}, "data": {"files": ["a"]}})";
  std::uint64_t random = 7;
  const auto next = [&](std::size_t bound) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::size_t>(random >> 33) % bound;
  };
  for (int round = 0; round < 3000; ++round) {
    std::string text = good;
    for (std::size_t edits = 1 + next(3); edits > 0 && !text.empty(); --edits) {
      const std::size_t at = next(text.size());
      switch (next(4)) {
        case 0: text[at] = static_cast<char>(next(256)); break;
        case 1: text.erase(at, 1 + next(5)); break;
        case 2: text.insert(at, 1, "{}[]\",:0-9eE"[next(12)]); break;
        default: text.resize(at);
      }
    }
    std::string message;
    try {
      parse_config<Config>(text, "c.json");
    } catch (const Error& error) {
      message = error.what();
      EXPECT_EQ(message.rfind("config: ", 0), 0u) << message;
    }
    for (const char c : message) ASSERT_GE(static_cast<unsigned char>(c), 0x20) << message;
  }
}

}  // namespace
}  // namespace switchyard::train
