#pragma once

#include <boost/program_options.hpp>
#include <concepts>
#include <filesystem>
#include <iostream>
#include <string>

#include "core/error.h"
#include "train/classifier_config.h"
#include "train/config_sections.h"
#include "train/conversion/conversion.h"
#include "train/json_text.h"
#include "train/run_folder.h"
#include "train/threads.h"

/// What the command lines of the programs here have in common.
namespace switchyard {

/// Options in full, no abbreviations and no loose words; throws an exception that names what is wrong.
inline boost::program_options::variables_map read_command_line(
    int argc, char** argv, const boost::program_options::options_description& options) {
  namespace po = boost::program_options;
  po::variables_map given;
  const auto style = po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;
  const po::parsed_options parsed = po::command_line_parser(argc, argv).options(options).style(style).run();
  for (const po::option& option : parsed.options)
    check(option.position_key < 0, '"', option.original_tokens.at(0), "\" belongs to no option; --help lists them");
  po::store(parsed, given);
  po::notify(given);
  return given;
}

/// For the notifier() of option --`name`: throws Error for a number below `least`. Options read signed numbers, for
/// Boost makes the largest unsigned one of -1.
template <std::signed_integral T>
auto at_least(const char* name, T least) {
  return [=](T value) {
    check(value >= least, "--", name, ": ", value, " is out of range, expected ", least, " or more");
  };
}

/// The program here that a configuration with these keys is for; empty where they do not tell.
inline std::string program_for(const boost::json::object& config) {
  if (train::is_conversion_config(config)) return "convert";
  if (train::is_classifier_config(config)) return "train_classifier";
  const boost::json::value* model = config.if_contains("model");  // a path in configurations of conversions
  return model && model->is_object() ? "train_lm" : "";
}

/// The configuration file that `program` was given by --config, or by --resume as that of a run. Throws Error where
/// there is none, or one for another program.
inline std::filesystem::path config_file(const boost::program_options::variables_map& given,
                                         const std::string& program) {
  const bool resumed = given.count("resume") > 0;
  const std::filesystem::path path = given[resumed ? "resume" : "config"].as<std::string>();
  const boost::json::object config =
      resumed ? train::RunFolder::read_config_object(path) : train::load_config_object(path, {});
  const std::string expected = program_for(config);
  check(expected.empty() || expected == program, path.string(), ": is for ", expected, ", not for ", program);
  return resumed ? train::RunFolder::config_path(path) : path;
}

/// What a program returns: the result of `body`, or 1 after an error, which is told in one line.
template <class Body>
int run_program(const char* name, int argc, char** argv, Body body) {
  train::sleep_while_waiting(argv);
  try {
    return body(argc, argv);
  } catch (const std::exception& error) {
    std::cout.flush();
    std::cerr << name << ": " << error.what() << std::endl;
    return 1;
  }
}

/// Answers --help, --help-config and --validate-config, if one of them was given: prints the options, every key of a
/// Config, or the one that `read` returns. Returns whether that was all.
template <train::Configuration Config>
bool answered(const boost::program_options::variables_map& given,
              const boost::program_options::options_description& options,
              Config (*read)(const boost::program_options::variables_map&)) {
  if (given.count("help")) std::cout << options;
  else if (given.count("help-config")) std::cout << train::config_help<Config>();
  else if (given.count("validate-config")) std::cout << train::pretty_json(to_json(read(given)));
  else return false;
  return true;
}

}  // namespace switchyard
