#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "core/kernels/device.h"

namespace switchyard {

/// A call of an op on the host, as a KernelTrace heard of it.
struct TracedCall {
  std::string op, module;
  double flops = 0, bytes = 0;       ///< its work; 0 where not known
  std::uint64_t begin = 0, end = 0;  ///< nanoseconds of cuda::activity_clock()
};

/// Prints, for `steps` alike steps, a table of ops by time, and of the kernels each one used. An activity belongs to
/// the call number `scope` - 1, or to none with 0.
///
/// Rates count the operations and bytes that the op's ProfileScope named; bytes are those of its operands, so that an
/// op which reads something twice shows less than the memory delivers. An op's are over the time of all its kernels. A
/// kernel is given the work of the calls in which it took at least nine tenths of the time, and its rates are over its
/// own time in those; copies and fills know their bytes themselves. Another kernel's part of its op's work is not
/// known: it shows the op's rates, marked with a star.
void print_kernel_table(std::ostream& out, const std::vector<TracedCall>& calls,
                        const std::vector<cuda::Activity>& activities, std::int64_t steps);

}  // namespace switchyard
