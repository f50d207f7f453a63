// Trains a classifier of texts or of images from a configuration file and says how many of the validation examples it
// gets right.
//
//   build/cpu/bin/train_classifier --config configs/mnist10k-vit.json
//   build/cpu/bin/train_classifier --config configs/movie-reviews.json --set training.steps=500
//   build/cpu/bin/train_classifier --resume runs/mnist10k-vit-2026-03-01-142507
//
// It ends with loss and accuracy on the validation examples and the name of the run's folder.
#include <iostream>

#include "examples/command_line.h"
#include "train/task_trainer.h"
#include "train/tasks/classification_task.h"

using namespace switchyard;
namespace po = boost::program_options;
using Strings = std::vector<std::string>;

namespace {

po::options_description options() {
  po::options_description all("train_classifier [options]", 110);
  auto add = all.add_options();
  add("config", po::value<std::string>(), "configuration file, such as configs/mnist10k-vit.json");
  add("set", po::value<Strings>()->composing(), "key=value: overrides one key of the configuration; may be repeated");
  add("device", po::value<std::string>(), "cpu, cuda or cuda:<index>");
  add("resume", po::value<std::string>(), "folder of a run to continue");
  add("validate-config", "check the configuration, print it with every key, and stop");
  add("help-config", "print every key of a configuration with its meaning");
  add("help", "print this");
  return all;
}

po::variables_map parse(int argc, char** argv) {
  const po::variables_map given = read_command_line(argc, argv, options());
  if (given.count("help") || given.count("help-config")) return given;
  check(given.count("config") != given.count("resume"),
        given.count("config") ? "--config and --resume exclude each other: a run goes on with its own configuration"
                              : "expected --config FILE (try configs/mnist10k-vit.json), --resume RUN or --help");
  return given;
}

train::ClassifierConfig read_config(const po::variables_map& given) {
  Strings overrides = given.count("set") ? given["set"].as<Strings>() : Strings();
  if (given.count("device")) overrides.push_back("training.device=\"" + given["device"].as<std::string>() + '"');
  return train::load_config<train::ClassifierConfig>(config_file(given, "train_classifier"), overrides);
}

void say(const std::string& line) { std::cout << line << std::endl; }

int train_and_report(const po::variables_map& given, const std::string& program) {
  const bool resumed = given.count("resume") > 0;
  const train::ClassifierConfig config = read_config(given);
  memory_statistics(Device::parse(config.training.device));  // throws where there is no such GPU, before data are read
  const train::RunFolder run = resumed ? train::RunFolder::open(given["resume"].as<std::string>())
                                       : train::RunFolder::create(config.output, train::to_json(config));
  say("run folder: " + run.path().string());
  const auto task = train::new_classification_task(config, run.path(), say);
  say("model: " + train::format_rate(static_cast<double>(task->model().parameter_count())) + " parameters");
  train::TaskTrainer trainer(run, *task, config.training, config.optimizer, train::to_json(config));
  if (resumed) {
    run.store(train::to_json(config));  // not before it has been found to fit
    say("continuing after step " + std::to_string(trainer.step()));
  }
  if (!trainer.run()) {
    say("stopped and saved at step " + std::to_string(trainer.step()) + " of " + std::to_string(config.training.steps));
    say("to go on: " + program + " --resume " + run.path().string());
    return 0;
  }
  const train::Score score = trainer.last_validation() ? *trainer.last_validation() : task->evaluate();
  std::printf("validation: accuracy %.2f%% (loss %.4f)\n", 100 * *score.accuracy, score.loss);
  say("run folder: " + run.path().string());
  return 0;
}

int run(int argc, char** argv) {
  const po::variables_map given = parse(argc, argv);
  return answered(given, options(), read_config) ? 0 : train_and_report(given, argv[0]);
}

}  // namespace

int main(int argc, char** argv) { return run_program("train_classifier", argc, argv, run); }
