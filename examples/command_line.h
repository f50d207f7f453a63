#pragma once

#include <boost/program_options.hpp>
#include <concepts>
#include <iostream>

#include "core/error.h"
#include "train/config_sections.h"
#include "train/json_text.h"
#include "train/threads.h"

/// What the command lines of the programs here have in common.
namespace switchyard {

/// Options in full, no abbreviations and no loose words; throws an exception that says what is wrong.
inline boost::program_options::variables_map read_command_line(
    int argc, char** argv, const boost::program_options::options_description& options) {
  namespace po = boost::program_options;
  po::variables_map given;
  const auto style = po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;
  po::store(po::command_line_parser(argc, argv).options(options).positional({}).style(style).run(), given);
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
