// Makes the folder of a run of a model of Hugging Face's transformers (GPT-2, Gemma, BERT, ViT): config.json and its
// safetensors files, as save_pretrained() writes them or the Hub holds them.
//
//   build/cpu/bin/import_model --from gpt2 --out runs/gpt2 --data my_notes/ --set model.context=256
//   build/cpu/bin/generate --run runs/gpt2 --prompt "The "
//   build/cpu/bin/import_model --from vit-digits --out runs/vit-digits --set data.images=train-images-idx3-ubyte ...
#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <iostream>

#include "core/error.h"
#include "examples/command_line.h"
#include "train/import/run.h"

using namespace switchyard;
namespace po = boost::program_options;
using Strings = std::vector<std::string>;

namespace {

po::options_description options() {
  po::options_description all("import_model [options]", 110);
  auto add = all.add_options();
  add("from", po::value<std::string>(), "folder with config.json and model.safetensors");
  add("out", po::value<std::string>(), "folder of the run, to be made");
  add("data", po::value<Strings>()->multitoken(),
      "text files or folders that a language model is to go on with; none: the text built into the program");
  add("set", po::value<Strings>()->composing(),
      "key=value: sets one key of the run's configuration, such as data.images; may be repeated");
  add("help", "print this");
  return all;
}

int run(int argc, char** argv) {
  const po::variables_map given = read_command_line(argc, argv, options());
  if (given.count("help")) {
    std::cout << options();
    return 0;
  }
  check(given.count("from"), "expected --from FOLDER, a model as transformers' save_pretrained() writes it");
  check(given.count("out"), "expected --out FOLDER for the run");
  const std::string from = given["from"].as<std::string>(), out = given["out"].as<std::string>();
  Strings overrides = given.count("set") ? given["set"].as<Strings>() : Strings();
  if (given.count("data")) {
    const Strings files = given["data"].as<Strings>();
    overrides.push_back("data.files=" + boost::json::serialize(boost::json::array(files.begin(), files.end())));
  }
  train::write_imported_run(train::HubFolder(from), overrides, out,
                            [](const std::string& line) { std::cout << line << std::endl; });
  std::cout << "run folder: " << out << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_program("import_model", argc, argv, run); }
