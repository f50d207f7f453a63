#include "core/kernels/index.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/parallel.h"

namespace switchyard::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;             // elements worth a thread
constexpr std::int64_t kColumns = 64, kRows = 64;  // of a block of the embedding's gradient

std::int64_t rows_worth_a_thread(std::int64_t width) { return std::max<std::int64_t>(1, kGrain / (width + 1)); }

void check_ids(const char* op, const std::int64_t* ids, std::int64_t count, std::int64_t rows) {
  for (std::int64_t i = 0; i < count; ++i)
    check(ids[i] >= 0 && ids[i] < rows, op, ": id ", ids[i], " at position ", i, " is outside a table of ", rows,
          " rows");
}

void check_index(const char* op, const Tensor& index, std::int64_t size) {
  const std::int32_t* at = index.data<std::int32_t>();
  for (std::int64_t i = 0; i < index.numel(); ++i)
    check(at[i] >= 0 && at[i] < size, op, ": index ", at[i], " at position ", i, " is outside a last axis of ", size);
}

// The positions in `ids`, stably sorted by id: those of id v are positions[first[v]] .. positions[first[v + 1] - 1].
struct SortedIds {
  std::vector<std::int64_t> first, positions;

  SortedIds(const std::int64_t* ids, std::int64_t count, std::int64_t rows)
      : first(static_cast<std::size_t>(rows) + 1), positions(static_cast<std::size_t>(count)) {
    for (std::int64_t i = 0; i < count; ++i) ++first[ids[i] + 1];
    for (std::int64_t v = 0; v < rows; ++v) first[v + 1] += first[v];
    std::vector<std::int64_t> next(first.begin(), first.end() - 1);
    for (std::int64_t i = 0; i < count; ++i) positions[next[ids[i]]++] = i;
  }
};

template <class T>
void sum_rows(const T* dy, std::int64_t width, const SortedIds& sorted, std::int64_t id, std::int64_t column,
              std::int64_t columns, T* to) {
  accumulate_t<T> sums[kColumns] = {};
  for (std::int64_t i = sorted.first[id]; i < sorted.first[id + 1]; ++i) {
    const T* row = dy + sorted.positions[i] * width + column;
    for (std::int64_t j = 0; j < columns; ++j) sums[j] += static_cast<accumulate_t<T>>(row[j]);
  }
  for (std::int64_t j = 0; j < columns; ++j) to[j] = static_cast<T>(sums[j]);
}

}  // namespace

void embedding(const Tensor& table, const Tensor& ids, const Tensor& out) {
  const std::int64_t* id = ids.data<std::int64_t>();
  check_ids("embedding", id, ids.numel(), table.size(0));
  const std::size_t bytes = static_cast<std::size_t>(table.size(1)) * size_of(table.dtype());
  parallel_for(0, ids.numel(), rows_worth_a_thread(table.size(1)), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      std::memcpy(out.raw() + static_cast<std::size_t>(i) * bytes,
                  table.raw() + static_cast<std::size_t>(id[i]) * bytes, bytes);
  });
}

void embedding_backward(const Tensor& dy, const Tensor& ids, const Tensor& dtable) {
  const std::int64_t rows = dtable.size(0), width = dtable.size(1);
  check_ids("embedding_backward", ids.data<std::int64_t>(), ids.numel(), rows);
  const SortedIds sorted(ids.data<std::int64_t>(), ids.numel(), rows);
  // Blocks of columns are the outer loop, since they share the work equally however often each id occurs.
  const std::int64_t row_blocks = (rows + kRows - 1) / kRows, column_blocks = (width + kColumns - 1) / kColumns;
  dispatch_floating(dy.dtype(), "embedding_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* from = dy.data<T>();
    T* to = dtable.data<T>();
    parallel_for(0, row_blocks * column_blocks, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t block = begin; block < end; ++block) {
        const std::int64_t column = block / row_blocks * kColumns, row = block % row_blocks * kRows;
        const std::int64_t columns = std::min(kColumns, width - column);
        for (std::int64_t v = row; v < std::min(rows, row + kRows); ++v)
          sum_rows(from, width, sorted, v, column, columns, to + v * width + column);
      }
    });
  });
}

void gather_last(const Tensor& x, const Tensor& index, const Tensor& out) {
  const std::int64_t size = x.size(1), k = index.size(1);
  check_index("gather_last", index, size);
  dispatch_all(x.dtype(), "gather_last", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* from = x.data<T>();
    const std::int32_t* at = index.data<std::int32_t>();
    T* to = out.data<T>();
    parallel_for(0, x.size(0), rows_worth_a_thread(k), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r)
        for (std::int64_t j = 0; j < k; ++j) to[r * k + j] = from[r * size + at[r * k + j]];
    });
  });
}

void gather_last_backward(const Tensor& dy, const Tensor& index, const Tensor& dx) {
  const std::int64_t size = dx.size(1), k = index.size(1);
  check_index("gather_last_backward", index, size);
  dispatch_floating(dy.dtype(), "gather_last_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Sum = accumulate_t<T>;
    const T* from = dy.data<T>();
    const std::int32_t* at = index.data<std::int32_t>();
    T* to = dx.data<T>();
    parallel_for(0, dx.size(0), rows_worth_a_thread(size), [&](std::int64_t begin, std::int64_t end) {
      std::vector<Sum> sums(static_cast<std::size_t>(size));
      for (std::int64_t r = begin; r < end; ++r) {
        std::fill(sums.begin(), sums.end(), Sum(0));
        for (std::int64_t j = 0; j < k; ++j) sums[at[r * k + j]] += static_cast<Sum>(from[r * k + j]);
        for (std::int64_t j = 0; j < size; ++j) to[r * size + j] = static_cast<T>(sums[j]);
      }
    });
  });
}

}  // namespace switchyard::cpu
