#pragma once

#include <boost/json/fwd.hpp>
#include <cstdint>
#include <vector>

#include "core/tensor.h"
#include "data/token_file.h"

namespace switchyard::data {

/// Target of a position that counts in no loss: padding behind the end of a document.
inline constexpr std::int64_t kIgnoreIndex = -100;

/// targets[b, t] is the token that follows inputs[b, t].
struct Batch {
  Tensor inputs;   ///< i64 [batch, context]
  Tensor targets;  ///< i64 [batch, context]
  /// The rows do not go on where the rows of the previous batch ended: states cached from it are to be dropped.
  /// Always true for random windows.
  bool restarts = true;
};

enum class Sampling {
  /// Every epoch cuts the tokens into windows at a new random place and visits each window once, in random order.
  random_windows,
  /// Row b of all batches of an epoch reads one stretch of the text from its begin to its end, as models need that
  /// cache the previous segment.
  contiguous_streams,
};

struct LoaderOptions {
  std::int64_t batch = 1;    ///< rows of this rank's batches
  std::int64_t context = 1;  ///< tokens per row
  Sampling sampling = Sampling::random_windows;
  /// No window holds tokens of two documents: each document is cut from its begin, its first input is the separator,
  /// its last window is padded (input separator, target kIgnoreIndex). For random windows only. Else windows cross
  /// from one document into the next, over the separator between them.
  bool respect_documents = false;
  std::uint64_t seed = 0;
  std::int64_t rank = 0, world = 1;  ///< ranks read disjoint rows of one global batch of batch x world rows
};

/// Where a Loader stands; with the same token file it continues exactly there.
struct LoaderState {
  std::uint64_t seed = 0;
  std::int64_t epoch = 0;
  /// Random windows: windows used in this epoch, by all ranks. Contiguous streams: segments used of each stream.
  std::int64_t position = 0;
  std::int64_t context = 0;
  std::int64_t streams = 0;  ///< batch x world for contiguous streams, else 0: random windows may change their batch
  bool respect_documents = false;
  std::uint64_t content = 0;  ///< TokenFile::checksum()

  bool operator==(const LoaderState&) const = default;
};

boost::json::value to_json(const LoaderState& state);
/// Throws Error naming the key that is missing, unknown or not a number in range.
LoaderState loader_state_from_json(const boost::json::value& json);

/// An endless sequence of training batches. Each depends only on the token file, the options and its place in the
/// sequence, so equal seeds give equal batches anywhere.
class Loader {
 public:
  /// Throws Error when the tokens are too few for one window, or for one segment of each stream.
  Loader(TokenFile tokens, const LoaderOptions& options);

  /// The next batch, on the CPU.
  Batch next();

  /// Distinct windows (all rows of all ranks) in one epoch.
  std::int64_t windows_per_epoch() const { return windows_; }
  const TokenFile& tokens() const { return tokens_; }
  const LoaderOptions& options() const { return options_; }
  LoaderState state() const;
  /// Continues from a state of a loader of the same token file, context and kind; throws Error naming what differs.
  void restore(const LoaderState& state);

 private:
  void fill_row(std::int64_t epoch, std::int64_t window, std::int64_t* inputs, std::int64_t* targets) const;
  void fill_document_row(std::int64_t window, std::int64_t* inputs, std::int64_t* targets) const;

  TokenFile tokens_;
  LoaderOptions options_;
  std::int64_t windows_ = 0;
  std::int64_t segments_ = 0;                // per stream
  std::vector<std::int64_t> first_windows_;  // of each document, where documents are respected
  std::int64_t epoch_ = 0, position_ = 0;
};

/// The same `count` windows at every call, spread evenly from the first token to the last: inputs and targets of shape
/// [count, context]. There are fewer where `count` windows would overlap.
Batch validation_windows(const TokenFile& tokens, std::int64_t count, std::int64_t context);

}  // namespace switchyard::data
