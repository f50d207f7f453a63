#include "core/ops/copy.h"

#include "core/kernels/copy.h"
#include "core/kernels/device.h"
#include "core/ops/dispatch.h"

namespace switchyard::ops {

void copy(const Tensor& source, const Tensor& to) {
  check(source.defined() && to.defined(), "copy: an undefined tensor");
  const Tensor from = source.shape() == to.shape() ? source : source.broadcast_to(to.shape());
  if (to.numel() == 0) return;
  if (from.device() == to.device()) {
    SWITCHYARD_DISPATCH(to.device(), copy, from, to);
    return;
  }
  // Only dense blocks of one dtype cross devices; the strided and converting parts run on one side of the crossing.
  const Tensor dense = source.to(to.dtype()).contiguous();
  if (to.is_contiguous() && dense.shape() == to.shape()) {
    const ProfileScope scope("copy between devices", 0, bytes_of(dense));
    cuda::copy_bytes(to.raw(), to.device(), dense.raw(), dense.device(), dense.bytes());
  } else {
    copy(dense.to(to.device()), to);
  }
}

void fill(const Tensor& to, double value) {
  check(to.defined(), "fill: the tensor is undefined");
  if (to.numel() > 0) SWITCHYARD_DISPATCH(to.device(), fill, to, value);
}

}  // namespace switchyard::ops
