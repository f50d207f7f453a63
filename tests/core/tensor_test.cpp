#include "core/tensor.h"

#include <random>

#include "core/parallel.h"
#include "tests/support/close.h"
#include "tests/support/device.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using namespace testing;
using Integers = std::vector<std::int64_t>;

TEST(Tensor, Construction) {
  EXPECT_FALSE(Tensor().defined());
  EXPECT_EQ(Tensor::arange(4).to_vector<std::int64_t>(), (Integers{0, 1, 2, 3}));
  EXPECT_EQ(Tensor::ones({2}, DType::bf16).to_vector<float>(), (std::vector<float>{1, 1}));
  EXPECT_EQ(Tensor::scalar(2.5).item<double>(), 2.5);
  EXPECT_EQ(Tensor::scalar(2.5).rank(), 0);
  const Tensor x = Tensor::from<float>({1, 2, 3, 4, 5, 6}, {2, 3});
  EXPECT_EQ(x.size(-1), 3);
  EXPECT_EQ(x.stride(0), 3);
  EXPECT_EQ(x.numel(), 6);
  EXPECT_EQ(x.bytes(), 24u);
  EXPECT_EQ(x.dtype(), DType::f32);
  EXPECT_EQ(x.device(), default_device());
  EXPECT_EQ(Tensor::ones({2}, DType::f32, Device::cpu()).device(), Device::cpu());
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(x.raw()) % 64, 0u);
  EXPECT_EQ(Tensor::zeros_like(x.transpose(0, 1)).strides(), Shape({2, 1}));
}

TEST(Tensor, HandlesShareElements) {
  const Tensor x = Tensor::zeros({2, 3});
  const Tensor row = x.select(0, 1);
  row.fill(4);
  EXPECT_EQ(x.to_vector<std::int64_t>(), (Integers{0, 0, 0, 4, 4, 4}));
  const Tensor copy = x.clone();
  x.fill(0);
  EXPECT_EQ(copy.select(0, 1).to_vector<std::int64_t>(), (Integers{4, 4, 4}));
  EXPECT_EQ(x.contiguous().raw(), x.raw());
  EXPECT_EQ(x.to(DType::f32).raw(), x.raw());
}

TEST(Tensor, MemoryIsCounted) {
  const auto before = memory_statistics(default_device());
  reset_peak_memory(default_device());
  {
    const Tensor x = Tensor::empty({1024}, DType::f64);
    EXPECT_EQ(memory_statistics(default_device()).current_bytes, before.current_bytes + 8192);
    const Tensor view = x.slice(0, 10, 20);
    EXPECT_EQ(memory_statistics(default_device()).current_bytes, before.current_bytes + 8192);
  }
  EXPECT_EQ(memory_statistics(default_device()).current_bytes, before.current_bytes);
  EXPECT_EQ(memory_statistics(default_device()).peak_bytes, before.current_bytes + 8192);
}

TEST(Tensor, Prints) {
  EXPECT_EQ(Tensor().to_string(), "Tensor(undefined)");
  const std::string place = default_device().is_cuda() ? text_of(default_device()) + " " : "";
  EXPECT_EQ(Tensor::from<float>({1, 2.5f, -3}, {3}).to_string(), "Tensor(f32 [3] " + place + "[1, 2.5, -3])");
  EXPECT_EQ(Tensor::from<std::int64_t>({1, 2, 3, 4}, {2, 2}).to_string(),
            "Tensor(i64 [2, 2] " + place + "[[1, 2], [3, 4]])");
  EXPECT_EQ(Tensor::arange(100).to_string(), "Tensor(i64 [100] " + place + "[0, 1, 2, ..., 97, 98, 99])");
  EXPECT_EQ(Tensor::scalar(1, DType::boolean).to_string(), "Tensor(bool [] " + place + "1)");
  EXPECT_EQ(Tensor::zeros({0, 2}).to_string(), "Tensor(f32 [0, 2] " + place + "[])");
}

TEST(Tensor, Errors) {
  const Tensor x = Tensor::zeros({2, 3});
  EXPECT_ERROR(Tensor::empty({2, -1}), "empty: negative size in shape [2, -1]");
  EXPECT_ERROR(Tensor::empty({1ll << 40, 1ll << 40}), "too large");
  EXPECT_ERROR(Tensor::arange(-1), "arange: negative count -1");
  EXPECT_ERROR(Tensor::from<float>({1, 2}, {3}), "from: 2 values do not fill shape [3]");
  EXPECT_ERROR(x.data<double>(), "data: asked for f64, the tensor is f32");
  EXPECT_ERROR(Tensor().data<float>(), "data: the tensor is undefined");
  EXPECT_ERROR(x.item<float>(), "item: needs exactly one element, shape is [2, 3]");
  EXPECT_ERROR(Tensor().item<float>(), "item: the tensor is undefined");
  EXPECT_ERROR(x.size(2), "size: axis 2");
  EXPECT_ERROR(x.transpose(0, 2), "transpose: axis 2");
  EXPECT_ERROR(x.permute({0}), "permute: [0] does not name every axis of [2, 3] once");
  EXPECT_ERROR(x.permute({0, 0}), "permute: [0, 0] does not name");
  EXPECT_ERROR(x.slice(1, 2, 4), "slice: 2:4:1 does not fit axis 1 of [2, 3]");
  EXPECT_ERROR(x.slice(1, 2, 1), "slice");
  EXPECT_ERROR(x.slice(1, -1, 1), "slice");
  EXPECT_ERROR(x.slice(1, 0, 3, 0), "slice");
  EXPECT_ERROR(x.select(0, 2), "select: index 2 is outside axis 0 of [2, 3]");
  EXPECT_ERROR(x.squeeze(0), "squeeze: axis 0 of [2, 3] has not size 1");
  EXPECT_ERROR(x.unsqueeze(4), "unsqueeze: axis 4");
  EXPECT_ERROR(x.broadcast_to({2, 4}), "broadcast_to");
  EXPECT_ERROR(x.broadcast_to({3}), "broadcast_to");
  EXPECT_ERROR(x.broadcast_to({1, 3}), "broadcast_to: [2, 3] does not broadcast to [1, 3]");
  EXPECT_ERROR(x.view({4}), "view");
  EXPECT_ERROR(x.view({-1, -1}), "view: bad size");
  EXPECT_ERROR(x.view({-1, 4}), "view: [2, 3] does not fit [-1, 4]");
  EXPECT_ERROR(Tensor::zeros({0, 2}).view({-1, 0}), "view");
  EXPECT_ERROR(x.transpose(0, 1).view({6}), "use reshape");
}

TEST(Tensor, ViewsOfMergeableAxesNeedNoCopy) {
  const Tensor x = Tensor::arange(48).view({2, 4, 6});
  EXPECT_EQ(x.slice(0, 1, 2).view({-1}).raw(), x.select(0, 1).raw());
  EXPECT_EQ(x.slice(2, 0, 3).view({8, 3}).strides(), Shape({6, 1}));
  EXPECT_EQ(x.transpose(0, 2).view({6, 2, 2, 2}).strides(), Shape({1, 12, 6, 24}));
  EXPECT_EQ(x.view({1, 48, 1}).shape(), Shape({1, 48, 1}));
  EXPECT_EQ(Tensor::zeros({0, 3}).view({3, 0}).shape(), Shape({3, 0}));
  EXPECT_NE(x.transpose(0, 1).reshape({48}).raw(), x.raw());
}

/// A dense array that follows a tensor through its views by plain index arithmetic.
struct Model {
  Shape shape;
  std::vector<double> values;

  Model mapped(const Shape& new_shape, const std::function<Shape(const Shape&)>& old_index) const {
    Model out{new_shape, {}};
    const Shape strides = contiguous_strides(shape);
    for_each_index(new_shape, [&](const Shape& index) {
      const Shape old = old_index(index);
      std::int64_t at = 0;
      for (std::size_t i = 0; i < old.size(); ++i) at += old[i] * strides[i];
      out.values.push_back(values[static_cast<std::size_t>(at)]);
    });
    return out;
  }
};

class ViewWalk {
 public:
  explicit ViewWalk(unsigned seed) : random_(seed) {
    Shape shape;
    for (std::int64_t i = below(4); i >= 0; --i) shape.push_back(1 + below(5));
    tensor_ = Tensor::arange(shape.numel(), DType::f32).view(shape);
    model_ = {shape, tensor_.to_vector<double>()};
  }

  void run(int steps) {
    for (int i = 0; i < steps; ++i) {
      step();
      ASSERT_EQ(tensor_.shape(), model_.shape) << history_;
      std::size_t at = 0;
      for_each_index(tensor_.shape(),
                     [&](const Shape& index) { ASSERT_EQ(element(tensor_, index), model_.values[at++]) << history_; });
      ASSERT_EQ(tensor_.to_vector<double>(), model_.values) << history_;
      if (tensor_.is_contiguous()) {
        ASSERT_EQ(tensor_.contiguous().raw(), tensor_.raw());
      }
    }
  }

 private:
  std::int64_t below(std::int64_t bound) { return static_cast<std::int64_t>(random_() % static_cast<unsigned>(bound)); }

  void step() {
    const std::int64_t rank = tensor_.rank();
    const Shape shape = tensor_.shape();
    switch (rank == 0 ? 3 : below(7)) {
      case 0: {
        const std::int64_t a = below(rank), b = below(rank);
        history_ += " transpose";
        tensor_ = tensor_.transpose(a - (below(2) ? rank : 0), b);
        model_ = model_.mapped(tensor_.shape(), [=](Shape i) { return std::swap(i[a], i[b]), i; });
        break;
      }
      case 1: {
        const std::int64_t axis = below(rank), begin = below(shape[axis] + 1);
        const std::int64_t end = begin + below(shape[axis] - begin + 1), step = 1 + below(3);
        if (begin == end && below(4) != 0) break;
        history_ += " slice";
        tensor_ = tensor_.slice(axis, begin, end, step);
        model_ = model_.mapped(tensor_.shape(), [=](Shape i) { return i[axis] = begin + step * i[axis], i; });
        break;
      }
      case 2: {
        const std::int64_t axis = below(rank);
        if (shape[axis] == 0) break;
        const std::int64_t index = below(shape[axis]);
        history_ += " select";
        tensor_ = tensor_.select(axis, index);
        model_ = model_.mapped(tensor_.shape(), [=](Shape i) { return i.insert(i.begin() + axis, index), i; });
        break;
      }
      case 3: {
        if (rank > 5) break;
        const std::int64_t axis = below(rank + 1);
        history_ += " unsqueeze";
        tensor_ = tensor_.unsqueeze(axis);
        model_ = model_.mapped(tensor_.shape(), [=](Shape i) { return i.erase(i.begin() + axis), i; });
        break;
      }
      case 4: {
        Shape target = shape;
        for (std::int64_t& size : target)
          if (size == 1) size = 1 + below(3);
        if (below(2) && rank < 5) target.insert(target.begin(), 1 + below(2));
        if (target.numel() > 3000) break;
        history_ += " broadcast";
        tensor_ = tensor_.broadcast_to(target);
        model_ = model_.mapped(target, [=](Shape i) {
          i.erase(i.begin(), i.begin() + (target.rank() - rank));
          for (std::int64_t k = 0; k < rank; ++k)
            if (shape[k] == 1) i[k] = 0;
          return i;
        });
        break;
      }
      case 5: {
        Shape axes;
        for (std::int64_t i = 0; i < rank; ++i) axes.push_back(i);
        std::shuffle(axes.begin(), axes.end(), random_);
        history_ += " permute";
        tensor_ = tensor_.permute(axes);
        model_ = model_.mapped(tensor_.shape(), [=](const Shape& i) {
          Shape old(i.size(), 0);
          for (std::size_t k = 0; k < axes.size(); ++k) old[axes[k]] = i[k];
          return old;
        });
        break;
      }
      default: {
        Shape target;  // the same elements, axes cut and joined at random
        for (std::int64_t rest = tensor_.numel(); rest > 1 && target.size() < 6;) {
          std::int64_t size = 1 + below(rest);
          while (rest % size != 0) --size;
          target.push_back(size);
          rest /= size;
          if (target.size() == 6) target.back() *= rest;
        }
        if (tensor_.numel() == 0) target = {0, 2};
        history_ += " reshape";
        tensor_ = tensor_.reshape(target);
        model_.shape = target;
      }
    }
  }

  std::mt19937 random_;
  Tensor tensor_;
  Model model_;
  std::string history_;
};

TEST(Tensor, RandomViewsFollowIndexArithmetic) {
  for (unsigned seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(seed);
    ViewWalk(seed).run(12);
    if (HasFatalFailure()) return;
  }
}

TEST(ParallelFor, CoversEveryIndexOnce) {
  for (const std::int64_t count : {0, 1, 7, 1000}) {
    for (const std::int64_t grain : {0, 1, 3, 10000}) {
      std::vector<int> seen(static_cast<std::size_t>(count));
      parallel_for(5, 5 + count, grain, [&](std::int64_t begin, std::int64_t end) {
        ASSERT_LT(begin, end);
        for (std::int64_t i = begin; i < end; ++i) ++seen[i - 5];
      });
      EXPECT_EQ(seen, std::vector<int>(static_cast<std::size_t>(count), 1));
    }
  }
}

TEST(ParallelFor, NestedLoopsRunOnTheirThread) {
  std::vector<int> seen(64);
  parallel_for(0, 8, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      parallel_for(0, 8, 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t j = first; j < last; ++j) ++seen[8 * i + j];
      });
  });
  EXPECT_EQ(seen, std::vector<int>(64, 1));
}

TEST(ParallelFor, ExceptionsReachTheCaller) {
  const auto work = [](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) check(i != 77, "loop: failed at ", i);
  };
  EXPECT_ERROR(parallel_for(0, 100, 1, work), "loop: failed at 77");
  EXPECT_ERROR(parallel_for(0, 100, 1000, work), "loop: failed at 77");
}

}  // namespace
}  // namespace switchyard
