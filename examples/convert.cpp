// Converts a trained dense model into a dynamic-k mixture of experts (D2DMoE, arXiv 2310.04361).
//
//   build/cpu/bin/convert --model runs/demo-2026-03-01-142507 --out converted --config configs/d2dmoe-gpt.json
//   build/cpu/bin/generate --run converted --tau 0.9 --prompt "The "
//
// Started again with the same arguments it goes on from its last checkpoint. At the end it measures the model at every
// setting of its gates: tools/plot.py sweep converted/sweep.json.
#include <boost/json/array.hpp>
#include <iostream>

#include "examples/command_line.h"
#include "train/conversion/conversion.h"
#include "train/interrupt.h"

using namespace switchyard;
namespace po = boost::program_options;
using Strings = std::vector<std::string>;

namespace {

po::options_description options() {
  po::options_description all("convert [options]", 110);
  auto add = all.add_options();
  add("model", po::value<std::string>(), "folder of the run whose model is converted, or of another conversion");
  add("out", po::value<std::string>(), "folder for the converted model; one that is there already is continued");
  add("config", po::value<std::string>(), "configuration file, such as configs/d2dmoe-gpt.json");
  add("set", po::value<Strings>()->composing(), "key=value: overrides one key of the configuration; may be repeated");
  add("device", po::value<std::string>()->default_value(""), "cpu, cuda or cuda:<index>; without it, the run's");
  add("validate-config", "check the configuration, print it with every key, and stop");
  add("help-config", "print every key of a configuration with its meaning");
  add("help", "print this");
  return all;
}

po::variables_map parse(int argc, char** argv) {
  const po::variables_map given = read_command_line(argc, argv, options());
  if (given.count("help") || given.count("help-config")) return given;
  check(given.count("config"), "expected --config FILE (try configs/d2dmoe-gpt.json) or --help");
  check(given.count("validate-config") || given.count("model"),
        "expected --model RUN, the folder of a run such as train_lm makes");
  check(given.count("validate-config") || given.count("out"), "expected --out FOLDER for the converted model");
  return given;
}

train::ConversionConfig read_config(const po::variables_map& given) {
  const Strings overrides = given.count("set") ? given["set"].as<Strings>() : Strings();
  train::ConversionConfig config =
      train::load_config<train::ConversionConfig>(config_file(given, "convert"), overrides);
  if (given.count("model")) config.model = given["model"].as<std::string>();
  return config;
}

void say(const std::string& line) { std::cout << line << std::endl; }

/// Returns whether all phases are finished; Ctrl-C stops between two steps.
bool run_phases(train::Conversion& conversion) {
  const train::InterruptGuard interrupt;
  return conversion.run([&] { return interrupt.requested(); });
}

int convert_and_report(const po::variables_map& given, const std::string& program) {
  const std::string out = given["out"].as<std::string>();
  train::Conversion conversion(out, read_config(given), given["device"].as<std::string>(), say);
  if (!run_phases(conversion)) {
    say("stopped; started again with the same arguments, " + program + " goes on from the last checkpoint");
    return 0;
  }
  conversion.measure();
  say("\n" + conversion.summary());
  say("converted model: " + out);
  return 0;
}

int run(int argc, char** argv) {
  const po::variables_map given = parse(argc, argv);
  return answered(given, options(), read_config) ? 0 : convert_and_report(given, argv[0]);
}

}  // namespace

int main(int argc, char** argv) { return run_program("convert", argc, argv, run); }
