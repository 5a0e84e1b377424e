// Convolutions and matrix products by oneDNN, as XLA FFI handlers for the CPU.
//
// Arrays are dense: images NHWC, convolutions' kernels HWIO. Factors are float32 or
// bfloat16, both the same; sums and results float32. One primitive is made for every
// problem, and kept.

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;
using Factor = ffi::AnyBuffer;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;
using Span = ffi::Span<const int64_t>;
using tag = memory::format_tag;

namespace {

constexpr auto kFloat32 = memory::data_type::f32;
constexpr auto kBfloat16 = memory::data_type::bf16;

memory::data_type TypeOf(const Factor& factor) {
  return factor.element_type() == ffi::BF16 ? kBfloat16 : kFloat32;
}

dnnl::engine& Cpu() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// An argument of a primitive: as XLA has it, and as the primitive wants it.
struct Argument {
  int id;
  memory::desc outside, inside;
};

struct Made {
  dnnl::primitive run;
  std::vector<Argument> inputs, outputs;
  memory::desc scratch;
};

// Scratch memory is ours: oneDNN's own belongs to the thread that made the primitive,
// and XLA calls from any.
dnnl::primitive_attr OurScratch() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

// Runs the primitive of `key`, made if it is the first time. One runs at a time: each
// uses all threads, and they share scratch memory and what arguments are brought to.
ffi::Error Run(std::vector<int64_t> key, const std::function<Made()>& make,
               const std::vector<void*>& inputs, const std::vector<void*>& outputs) {
  static std::mutex turn;
  static std::map<std::vector<int64_t>, Made> all;
  static std::map<size_t, std::vector<char>> room;
  try {
    std::lock_guard<std::mutex> mine(turn);
    auto found = all.find(key);
    if (found == all.end()) found = all.emplace(std::move(key), make()).first;
    Made& made = found->second;
    dnnl::stream stream(Cpu());
    std::unordered_map<int, memory> arguments;
    std::vector<std::pair<memory, memory>> after;
    size_t used = 0;
    auto memory_of = [&](const memory::desc& description) {
      auto& bytes = room[used++];
      if (bytes.size() < description.get_size()) bytes.resize(description.get_size());
      return memory(description, Cpu(), bytes.data());
    };
    arguments.emplace(DNNL_ARG_SCRATCHPAD, memory_of(made.scratch));
    auto bring = [&](const Argument& argument, void* data, bool in) {
      memory outside(argument.outside, Cpu(), data);
      if (argument.inside == argument.outside) {
        arguments.emplace(argument.id, outside);
        return;
      }
      memory inside = memory_of(argument.inside);
      if (in) dnnl::reorder(outside, inside).execute(stream, outside, inside);
      if (!in) after.emplace_back(inside, outside);
      arguments.emplace(argument.id, inside);
    };
    for (size_t i = 0; i < inputs.size(); i++) bring(made.inputs[i], inputs[i], true);
    for (size_t i = 0; i < outputs.size(); i++) {
      bring(made.outputs[i], outputs[i], false);
    }
    made.run.execute(stream, arguments);
    for (auto& [inside, outside] : after) {
      dnnl::reorder(inside, outside).execute(stream, inside, outside);
    }
    stream.wait();
  } catch (const dnnl::error& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
  return ffi::Error::Success();
}

enum Kind : int64_t { kForward, kToInput, kToKernel, kProduct };

memory::dims Nchw(Span d) { return {d[0], d[3], d[1], d[2]}; }
memory::dims Oihw(Span d) { return {d[3], d[2], d[0], d[1]}; }

struct Convolution {
  memory::dims source, kernel, target, stride, low, high;
  memory::data_type type;

  Convolution(Span source, Span kernel, Span target, Span stride, Span padding,
              memory::data_type type)
      : source(Nchw(source)), kernel(Oihw(kernel)), target(Nchw(target)),
        stride(stride.begin(), stride.end()), low{padding[0], padding[2]},
        high{padding[1], padding[3]}, type(type) {}

  std::vector<int64_t> Key(Kind kind) const {
    std::vector<int64_t> key{kind, static_cast<int64_t>(type)};
    for (auto* d : {&source, &kernel, &target, &stride, &low, &high}) {
      key.insert(key.end(), d->begin(), d->end());
    }
    return key;
  }

  memory::desc Source(memory::data_type t) const { return {source, t, tag::nhwc}; }
  memory::desc Target(memory::data_type t) const { return {target, t, tag::nhwc}; }
  memory::desc Kernel(memory::data_type t) const { return {kernel, t, tag::hwio}; }
  memory::desc AnyKernel(memory::data_type t) const { return {kernel, t, tag::any}; }
  memory::desc Bias() const { return {{target[1]}, kFloat32, tag::a}; }

  dnnl::convolution_forward::primitive_desc Forward(memory::data_type target_type) const {
    return {Cpu(), dnnl::prop_kind::forward_training,
            dnnl::algorithm::convolution_direct, Source(type), AnyKernel(type), Bias(),
            Target(target_type), stride, low, high, OurScratch()};
  }
};

// source * kernel + bias. padding: top, bottom, left, right.
ffi::Error Forward(Span stride, Span padding, Factor source, Factor kernel, Array bias,
                   Result target) {
  const Convolution c(source.dimensions(), kernel.dimensions(), target->dimensions(),
                      stride, padding, TypeOf(source));
  auto make = [&]() -> Made {
    auto forward = c.Forward(kFloat32);
    return {dnnl::convolution_forward(forward),
            {{DNNL_ARG_SRC, c.Source(c.type), c.Source(c.type)},
             {DNNL_ARG_WEIGHTS, c.Kernel(c.type), forward.weights_desc()},
             {DNNL_ARG_BIAS, c.Bias(), c.Bias()}},
            {{DNNL_ARG_DST, c.Target(kFloat32), c.Target(kFloat32)}},
            forward.scratchpad_desc()};
  };
  return Run(c.Key(kForward), make,
             {source.untyped_data(), kernel.untyped_data(), bias.typed_data()},
             {target->typed_data()});
}

// The gradient with respect to the source.
ffi::Error ToInput(Span stride, Span padding, Factor target, Factor kernel,
                   Result source) {
  const Convolution c(source->dimensions(), kernel.dimensions(), target.dimensions(),
                      stride, padding, TypeOf(target));
  auto make = [&]() -> Made {
    dnnl::convolution_backward_data::primitive_desc backward(
        Cpu(), dnnl::algorithm::convolution_direct, c.Source(kFloat32),
        c.AnyKernel(c.type), c.Target(c.type), c.stride, c.low, c.high,
        c.Forward(c.type), OurScratch());
    return {dnnl::convolution_backward_data(backward),
            {{DNNL_ARG_DIFF_DST, c.Target(c.type), c.Target(c.type)},
             {DNNL_ARG_WEIGHTS, c.Kernel(c.type), backward.weights_desc()}},
            {{DNNL_ARG_DIFF_SRC, c.Source(kFloat32), c.Source(kFloat32)}},
            backward.scratchpad_desc()};
  };
  return Run(c.Key(kToInput), make, {target.untyped_data(), kernel.untyped_data()},
             {source->typed_data()});
}

// The gradients with respect to the kernel and the bias.
ffi::Error ToKernel(Span stride, Span padding, Factor source, Factor target,
                    Result kernel, Result bias) {
  const Convolution c(source.dimensions(), kernel->dimensions(), target.dimensions(),
                      stride, padding, TypeOf(source));
  auto make = [&]() -> Made {
    dnnl::convolution_backward_weights::primitive_desc backward(
        Cpu(), dnnl::algorithm::convolution_direct, c.Source(c.type),
        c.AnyKernel(kFloat32), c.Bias(), c.Target(c.type), c.stride, c.low, c.high,
        c.Forward(c.type), OurScratch());
    return {dnnl::convolution_backward_weights(backward),
            {{DNNL_ARG_SRC, c.Source(c.type), c.Source(c.type)},
             {DNNL_ARG_DIFF_DST, c.Target(c.type), c.Target(c.type)}},
            {{DNNL_ARG_DIFF_WEIGHTS, c.Kernel(kFloat32), backward.diff_weights_desc()},
             {DNNL_ARG_DIFF_BIAS, c.Bias(), c.Bias()}},
            backward.scratchpad_desc()};
  };
  return Run(c.Key(kToKernel), make, {source.untyped_data(), target.untyped_data()},
             {kernel->typed_data(), bias->typed_data()});
}

// [m, k] x [k, n] -> [m, n]; a turned operand is stored the other way round.
ffi::Error Product(bool turn_left, bool turn_right, Factor left, Factor right,
                   Result result) {
  const int64_t m = result->dimensions()[0], n = result->dimensions()[1];
  const int64_t k = left.dimensions()[turn_left ? 0 : 1];
  const auto type = TypeOf(left);
  auto make = [&]() -> Made {
    auto a = [&](auto t) {
      return memory::desc({m, k}, t, turn_left ? tag::ba : tag::ab);
    };
    auto b = [&](auto t) {
      return memory::desc({k, n}, t, turn_right ? tag::ba : tag::ab);
    };
    memory::desc c({m, n}, kFloat32, tag::ab);
    dnnl::matmul::primitive_desc product(Cpu(), a(type), b(type), c, OurScratch());
    return {dnnl::matmul(product),
            {{DNNL_ARG_SRC, a(type), a(type)}, {DNNL_ARG_WEIGHTS, b(type), b(type)}},
            {{DNNL_ARG_DST, c, c}},
            product.scratchpad_desc()};
  };
  return Run({kProduct, m, n, k, turn_left, turn_right, static_cast<int64_t>(type)},
             make, {left.untyped_data(), right.untyped_data()}, {result->typed_data()});
}

auto BindConvolution() {
  return ffi::Ffi::Bind().Attr<Span>("stride").Attr<Span>("padding");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(EotjaxForward, Forward,
                              BindConvolution()
                                  .Arg<Factor>()
                                  .Arg<Factor>()
                                  .Arg<Array>()
                                  .Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    EotjaxToInput, ToInput,
    BindConvolution().Arg<Factor>().Arg<Factor>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    EotjaxToKernel, ToKernel,
    BindConvolution().Arg<Factor>().Arg<Factor>().Ret<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(EotjaxProduct, Product,
                              ffi::Ffi::Bind()
                                  .Attr<bool>("turn_left")
                                  .Attr<bool>("turn_right")
                                  .Arg<Factor>()
                                  .Arg<Factor>()
                                  .Ret<Array>());

// Whether the CPU has instructions that multiply bfloat16: AVX-512 BF16, or AMX.
extern "C" bool EotjaxMultipliesBfloat16() {
  return dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core_bf16;
}
