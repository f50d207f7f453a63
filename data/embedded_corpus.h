#pragma once

#include <string_view>

namespace switchyard::data {

/// The text of this repository (sources, documentation, configurations) as it was when the program was built, documents
/// separated as in any corpus file. It lies in the program itself.
std::string_view embedded_corpus_text();

}  // namespace switchyard::data
