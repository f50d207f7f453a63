#pragma once

#include <string>
#include <string_view>

#include "core/io/safetensors.h"

namespace switchyard {

/// Bits of one element of a type that the safetensors format names; 0 for an unknown name.
std::uint64_t bits_of_safetensors_type(std::string_view type);

/// Reads and checks the JSON header of a safetensors file with `data_bytes` bytes of data behind it. Throws Error
/// whose message starts with `source`. Memory use is bounded by the header's own length.
SafetensorsFile::Contents parse_safetensors_header(std::string_view json, std::uint64_t data_bytes,
                                                   const std::string& source);

}  // namespace switchyard
