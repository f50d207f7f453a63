#include "data/labelled_texts.h"

#include <algorithm>
#include <map>
#include <set>

#include "core/error.h"
#include "core/io/checksum.h"
#include "core/io/mapped_file.h"
#include "data/packed_file.h"

namespace switchyard::data {
namespace {

struct Line {
  std::string label, text, place;  // place: "reviews.tsv:12"
};

Line split_line(std::string_view line, std::string place) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  const std::size_t tab = line.find('\t');
  check(tab != std::string_view::npos, "labelled texts: ", place, ": has no tab, expected <label><tab><text>");
  check(tab > 0, "labelled texts: ", place, ": has no label before the tab, expected <label><tab><text>");
  check(tab + 1 < line.size(), "labelled texts: ", place, ": has no text after the tab, expected <label><tab><text>");
  return {std::string(line.substr(0, tab)), std::string(line.substr(tab + 1)), std::move(place)};
}

void read_lines(const std::filesystem::path& path, std::vector<Line>& lines) {
  const auto file = MappedFile::open(path);
  std::string_view text(reinterpret_cast<const char*>(file->data()), file->size());
  const char* hint = unpacking_hint(text);
  check(*hint == '\0' && text.find('\0') == std::string_view::npos, "labelled texts: ", path.string(),
        " is not a text file", *hint == '\0' ? " (it holds zero bytes)" : hint);
  for (std::int64_t number = 1; !text.empty(); ++number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    lines.push_back(split_line(text.substr(0, end), path.string() + ':' + std::to_string(number)));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

std::string list_of(const std::vector<std::string>& names) {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
  return list;
}

/// Each once, sorted.
std::vector<std::string> labels_of(const std::vector<Line>& lines) {
  std::set<std::string> labels;
  for (const Line& line : lines) labels.insert(line.label);
  return {labels.begin(), labels.end()};
}

}  // namespace

LabelledTexts read_labelled_texts(const std::vector<std::filesystem::path>& files,
                                  const std::vector<std::string>& classes) {
  check(!files.empty(), "labelled texts: no files given");
  std::vector<Line> lines;
  for (const auto& file : files) read_lines(file, lines);
  check(!lines.empty(), "labelled texts: ", files.front().string(), files.size() > 1 ? " and the other files" : "",
        ": no examples, expected lines of <label><tab><text>");
  LabelledTexts out;
  out.classes = classes.empty() ? labels_of(lines) : classes;
  std::map<std::string, std::int64_t> numbers;
  for (const std::string& name : out.classes) numbers.emplace(name, static_cast<std::int64_t>(numbers.size()));
  for (Line& line : lines) {
    const auto at = numbers.find(line.label);
    check(at != numbers.end(), "labelled texts: ", line.place, ": label \"", line.label,
          "\" is unknown, expected one of ", list_of(out.classes));
    out.labels.push_back(at->second);
    out.texts.push_back(std::move(line.text));
  }
  return out;
}

TextExamples::TextExamples(const LabelledTexts& texts, const Tokenizer& tokenizer, std::int64_t context)
    : context_(context), separator_(tokenizer.separator()), frame_(tokenizer.frame()), labels_(texts.labels) {
  const std::int64_t framed = std::ssize(frame_.before) + std::ssize(frame_.after);
  check(context > framed, "text examples: context ", context, " is too short, expected at least ", framed + 1);
  Checksum content;
  for (std::size_t i = 0; i < texts.texts.size(); ++i) {
    std::vector<std::int32_t> ids = tokenizer.encode(texts.texts[i]);
    const auto most = static_cast<std::size_t>(context - framed);
    if (ids.size() > most) ids.erase(ids.begin(), ids.end() - static_cast<std::ptrdiff_t>(most));
    content.update(&labels_[i], sizeof labels_[i]);
    content.update(ids.data(), ids.size() * sizeof ids[0]);
    tokens_.push_back(std::move(ids));
  }
  checksum_ = content.value();
}

LabelledTextBatch TextExamples::batch(std::span<const ExampleTurn> turns) const {
  const auto rows = static_cast<std::int64_t>(turns.size());
  LabelledTextBatch out{Tensor::full({rows, context_}, static_cast<double>(separator_), DType::i64, Device::cpu()),
                        Tensor::full({rows, context_}, 1, DType::boolean, Device::cpu()),
                        Tensor::empty({rows}, DType::i64, Device::cpu())};
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto example = static_cast<std::size_t>(turns[static_cast<std::size_t>(row)].example);
    const std::vector<std::int32_t>& ids = tokens_.at(example);
    auto* const begin = out.tokens.data<std::int64_t>() + row * context_;
    auto* end = std::copy(frame_.before.begin(), frame_.before.end(), begin);
    end = std::copy(ids.begin(), ids.end(), end);
    end = std::copy(frame_.after.begin(), frame_.after.end(), end);
    std::fill_n(out.padding.data<bool>() + row * context_, end - begin, false);
    out.labels.data<std::int64_t>()[row] = labels_[example];
  }
  return out;
}

}  // namespace switchyard::data
