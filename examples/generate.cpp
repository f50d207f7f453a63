// Lets the model of a run, or of a conversion, continue a text.
//
//   build/cpu/bin/generate --run runs/demo-2026-03-01-142507 --prompt "namespace "
//   build/cpu/bin/generate --run converted --tau 0.9
#include <iostream>

#include "examples/command_line.h"
#include "moe/conversion/convert.h"
#include "train/sample.h"
#include "train/tasks/language_model_task.h"

using namespace switchyard;
namespace po = boost::program_options;

namespace {

struct Request {
  std::string run, prompt, device;
  std::int64_t seed = 1;
  nn::SamplingOptions sampling;
  moe::Gate gate;
  bool help = false;
};

Request parse(int argc, char** argv) {
  Request request;
  request.sampling = {.count = 400, .temperature = 0.8};
  po::options_description all("generate [options]", 110);
  auto add = all.add_options();
  add("run", po::value(&request.run), "folder of the run whose model is to write");
  add("prompt", po::value(&request.prompt), "beginning of the text");
  const auto whole = [](const char* name, std::int64_t& value, std::int64_t least) {
    return po::value(&value)->default_value(value)->notifier(at_least(name, least));
  };
  add("tokens", whole("tokens", request.sampling.count, 0), "tokens to write");
  add("temperature", po::value(&request.sampling.temperature)->default_value(0.8, "0.8"),
      "0: always the likeliest token");
  add("top-k", whole("top-k", request.sampling.top_k, 0), "choose among the k likeliest tokens; 0: all");
  add("top-p", po::value(&request.sampling.top_p)->default_value(1.0, "1"),
      "choose among the likeliest tokens that make up this share");
  add("tau", po::value(&request.gate.tau),
      "of a converted model: run the experts whose scores reach 1 - tau of a token's largest, 0 to 1");
  add("k", po::value(&request.gate.k)->notifier(at_least<std::int64_t>("k", 1)),
      "of a converted model: run this many experts per token");
  add("seed", whole("seed", request.seed, 0), "the same seed writes the same text");
  add("device", po::value(&request.device), "cpu, cuda or cuda:<index>; without it, the run's");
  add("help", "print this");
  const po::variables_map given = read_command_line(argc, argv, all);
  request.help = given.count("help") > 0;
  if (request.help) std::cout << all;
  check(request.help || given.count("run"), "expected --run FOLDER, such as one that train_lm made");
  check(!given.count("tau") || !given.count("k"), "--tau and --k exclude each other: one of them chooses the experts");
  if (given.count("tau")) request.gate.mode = moe::GateMode::dynk_max;
  if (given.count("k")) request.gate.mode = moe::GateMode::topk;
  return request;
}

int run(int argc, char** argv) {
  Request request = parse(argc, argv);
  if (request.help) return 0;
  const auto opened = train::open_task(request.run, {request.device},
                                       [](const std::string& line) { std::cerr << "generate: " << line << std::endl; });
  auto* task = dynamic_cast<train::LanguageModelTask*>(opened.get());
  check(task != nullptr, request.run, ": holds no language model");
  if (request.gate.mode != moe::GateMode::all) moe::set_gates(task->model(), request.gate);
  request.sampling.context = std::max<std::int64_t>(task->config().model.context, 2);
  const std::string text = train::generate_text(task->model(), *task->text().tokenizer, request.prompt,
                                                request.sampling, static_cast<std::uint64_t>(request.seed));
  std::cout << request.prompt << train::printable(text) << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_program("generate", argc, argv, run); }
