#pragma once

#include <string_view>

namespace switchyard::data {

/// What an error message about a file adds where the file's first bytes show that it is compressed: how to unpack it.
/// Empty for other files.
inline const char* unpacking_hint(std::string_view bytes) {
  if (bytes.starts_with("\xFD"
                        "7zXZ"))
    return "; it is packed, unpack it first: xz --decompress --keep";
  if (bytes.starts_with("\x1F\x8B")) return "; it is packed, unpack it first: gzip --decompress --keep";
  if (bytes.starts_with("\x28\xB5\x2F\xFD")) return "; it is packed, unpack it first: zstd --decompress";
  return "";
}

}  // namespace switchyard::data
