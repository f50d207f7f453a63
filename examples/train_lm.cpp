// Trains a language model from a configuration file, validates it and lets it write.
//
//   build/cpu/bin/train_lm --config configs/demo.json
//   build/cpu/bin/train_lm --config configs/demo.json --data my_notes/ --set training.steps=500
//   build/cpu/bin/train_lm --resume runs/demo-2026-03-01-142507
//
// It ends with the validation loss in bits per byte, a sample of text, and the name of the run's folder.
#include <iostream>

#include "core/profiler.h"
#include "examples/command_line.h"
#include "moe/accounting.h"
#include "train/sample.h"
#include "train/trainer.h"

using namespace switchyard;
namespace po = boost::program_options;
using Strings = std::vector<std::string>;

namespace {

constexpr std::int64_t kProfiledSteps = 20;

po::options_description options() {
  po::options_description all("train_lm [options]", 110);
  auto add = all.add_options();
  add("config", po::value<std::string>(), "configuration file, such as configs/demo.json");
  add("set", po::value<Strings>()->composing(), "key=value: overrides one key of the configuration; may be repeated");
  add("data", po::value<Strings>()->multitoken(), "text files or folders to train on, instead of the configuration's");
  add("device", po::value<std::string>(), "cpu, cuda or cuda:<index>");
  add("cuda-graph", po::value<std::string>()->default_value("auto"),
      "auto, on or off: record the work of a training step once and replay it, which spares the host (auto: on GPUs)");
  add("resume", po::value<std::string>(), "folder of a run to continue");
  add("profile", po::value<std::int64_t>()->notifier(at_least<std::int64_t>("profile", 1)),
      "print where the time of this many training steps goes; on a GPU also write a trace into the run's folder");
  add("validate-config", "check the configuration, print it with every key, and stop");
  add("help-config", "print every key of a configuration with its meaning");
  add("help", "print this");
  return all;
}

std::int64_t profiled_steps(const po::variables_map& given) {
  return given.count("profile") ? given["profile"].as<std::int64_t>() : kProfiledSteps;
}

po::variables_map parse(int argc, char** argv) {
  const po::variables_map given = read_command_line(argc, argv, options());
  if (given.count("help") || given.count("help-config")) return given;
  check(given.count("config") != given.count("resume"),
        given.count("config") ? "--config and --resume exclude each other: a run goes on with its own configuration"
                              : "expected --config FILE (try configs/demo.json), --resume RUN or --help");
  check(!given.count("resume") || !given.count("data"), "--data and --resume exclude each other: a run keeps its text");
  const std::string graph = given["cuda-graph"].as<std::string>();
  check(graph == "auto" || graph == "on" || graph == "off", "--cuda-graph: \"", graph,
        "\" is unknown, expected auto, on or off");
  return given;
}

/// --set, and the options that stand for one.
Strings overrides(const po::variables_map& given) {
  Strings all = given.count("set") ? given["set"].as<Strings>() : Strings();
  if (given.count("device")) all.push_back("training.device=\"" + given["device"].as<std::string>() + '"');
  return all;
}

train::Config read_config(const po::variables_map& given) {
  train::Config config = train::load_config<train::Config>(config_file(given, "train_lm"), overrides(given));
  if (given.count("data")) config.data.files = given["data"].as<Strings>();
  train::validate(config);
  return config;
}

void say(const std::string& line) { std::cout << line << std::endl; }

void describe_model(const train::Config& config, const nn::LanguageModel& model) {
  moe::LanguageModelConfig sized = config.model;
  sized.vocabulary_size = model.vocabulary_size();
  const double macs = moe::model_cost(sized, config.training.batch).macs_per_token();
  say("model: " + train::format_rate(static_cast<double>(model.parameter_count())) + " parameters, " +
      train::format_rate(macs) + " multiply-adds per token, " + train::format_rate(2 * macs) + " FLOP per token");
}

void print_time_use(bool table) {
  double all = 0, gemm = 0;
  for (const ProfileEntry& entry : profile()) {
    all += entry.exclusive_seconds;
    if (entry.name == "gemm") gemm += entry.exclusive_seconds;
  }
  if (all == 0) return;
  if (table) print_profile(std::cout);
  std::printf("matrix products (GEMM) take %.0f%% of a training step\n", 100 * gemm / all);
}

void write_sample(const train::Config& config, nn::LanguageModel& model, const data::Tokenizer& tokenizer) {
  if (config.output.sample_length == 0) return;
  nn::SamplingOptions sampling;
  sampling.count = config.output.sample_length;
  sampling.temperature = config.output.sample_temperature;
  sampling.context = std::max<std::int64_t>(config.model.context, 2);
  const std::string& prompt = config.output.sample_prompt;
  const std::string text =
      train::generate_text(model, tokenizer, prompt, sampling, static_cast<std::uint64_t>(config.training.seed));
  say("\nthe model writes:\n----\n" + prompt + train::printable(text) + "\n----\n");
}

void name_next_steps(const std::string& program, const std::string& run, const po::variables_map& given) {
  const std::string folder = program.find('/') == std::string::npos ? "" : program.substr(0, program.rfind('/') + 1);
  const std::string config = given.count("config") ? given["config"].as<std::string>() : run + "/config.json";
  say("run folder: " + run);
  say("next:");
  say("  " + folder + "generate --run " + run + " --prompt \"The \"");
  say("  " + program + " --resume " + run + " --set training.steps=<more>");
  say("  " + program + " --config " + config + " --data <files or folders of your own text>");
}

int train_and_report(const po::variables_map& given, const std::string& program) {
  const train::Config config = read_config(given);
  const bool resumed = given.count("resume") > 0;
  const std::string graph = given["cuda-graph"].as<std::string>();
  const Device device = Device::parse(config.training.device);
  check(graph != "on" || device.is_cuda(), "--cuda-graph on: the run trains on ", device,
        ", which records no graphs; expected --device cuda");
  memory_statistics(device);  // throws where there is no such GPU, before a text is made ready
  const train::RunFolder run =
      resumed ? train::RunFolder::open(given["resume"].as<std::string>()) : train::RunFolder::create(config);
  say("run folder: " + run.path().string());
  const train::TokenizedText text = train::prepare_text(config, run.text_path(), say);
  train::Trainer trainer(run, config, text);
  if (resumed) run.store(config);  // not before it has been found to fit
  describe_model(config, trainer.model());
  if (resumed) say("continuing after step " + std::to_string(trainer.step()));
  if (graph == "off") trainer.use_graph(false);
  if (!device.is_cuda() || given.count("profile")) trainer.profile_steps(profiled_steps(given));

  const auto outcome = trainer.run();
  if (outcome == train::Trainer::Outcome::interrupted) {
    say("stopped and saved at step " + std::to_string(trainer.step()) + " of " + std::to_string(config.training.steps));
    say("to go on: " + program + " --resume " + run.path().string());
    return 0;
  }
  if (!device.is_cuda()) print_time_use(given.count("profile") > 0);
  const train::Evaluation validation = trainer.last_validation() ? *trainer.last_validation() : trainer.validate();
  std::printf("validation: %.3f bits per byte (loss %.4f over %lld tokens)\n",
              train::bits_per_byte(validation.nats_per_token, text.tokens_per_byte), validation.nats_per_token,
              static_cast<long long>(validation.tokens));
  write_sample(config, trainer.model(), *text.tokenizer);
  name_next_steps(program, run.path().string(), given);
  return 0;
}

int run(int argc, char** argv) {
  const po::variables_map given = parse(argc, argv);
  return answered(given, options(), read_config) ? 0 : train_and_report(given, argv[0]);
}

}  // namespace

int main(int argc, char** argv) { return run_program("train_lm", argc, argv, run); }
