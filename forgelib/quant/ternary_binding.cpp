// The kernel for Python, where torch's and Python's headers can be had: through ctypes a call takes as long as a small
// layer itself. linear(...) and linears(...) return None where x is not plain, and Python then looks at it. What C++
// throws, such as for want of memory, is raised in Python.

#include <torch/csrc/autograd/python_variable.h>

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/util/SmallVector.h>

namespace {

struct Layer {  // as in ternary_kernel.cpp
    const void *codes, *scales, *bias;
    size_t outputs, inputs;
};
using Tensors = c10::SmallVector<at::Tensor, 4>;  // few layers share an input; a vector costs a malloc a call
using Kernel = void (*)(const Layer*, size_t, const float*, size_t, float* const*, size_t, int);

// What use(...) was told: `ternary_linears`, its best path, the multiply-adds that are worth a second thread.
Kernel kernel;
int path;
size_t worth_threads;

PyObject* use(PyObject*, PyObject* args) {
    unsigned long long address, worth;
    if (!PyArg_ParseTuple(args, "KiK", &address, &path, &worth)) return nullptr;
    kernel = (Kernel)address, worth_threads = worth;
    Py_RETURN_NONE;
}

// The keys that a tensor on the CPU has when its memory holds just its numbers. Others say more of it: torch.func's
// wrappers and sparse ones have no such memory, views of the negative a minus that is yet to be taken.
constexpr c10::DispatchKeySet PLAIN({c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU,
                                     c10::DispatchKey::AutocastCPU, c10::DispatchKey::ADInplaceOrView});

// y [..., outputs] of each layer for x [..., inputs]. False where x is not plain float32, contiguous, as wide as the
// layers and free of gradients.
bool multiply(const Layer* layers, size_t n_layers, PyObject* object, Tensors& ys) {
    if (!THPVariable_CheckExact(object)) return false;
    const at::Tensor& x = THPVariable_Unpack(object);
    if (!PLAIN.has_all(x.key_set()) || x.scalar_type() != at::kFloat || !x.is_contiguous() || x.requires_grad() ||
        !x.dim() || (size_t)x.size(-1) != layers[0].inputs)
        return false;
    const size_t tokens = x.numel() / layers[0].inputs;
    c10::SmallVector<int64_t, 5> sizes(x.sizes().begin(), x.sizes().end());
    c10::SmallVector<float*, 4> to;
    size_t work = 0;
    for (size_t i = 0; i < n_layers; i++) {
        sizes.back() = layers[i].outputs;
        ys.push_back(at::detail::empty_cpu(sizes, at::kFloat, std::nullopt, std::nullopt, std::nullopt, std::nullopt));
        to.push_back(ys.back().mutable_data_ptr<float>());
        work += tokens * layers[i].inputs * layers[i].outputs;
    }
    const size_t threads = work < worth_threads ? 1 : at::get_num_threads();
    const float* from = x.const_data_ptr<float>();
    std::exception_ptr thrown;
    Py_BEGIN_ALLOW_THREADS;
    try {
        kernel(layers, n_layers, from, tokens, to.data(), threads, path);
    } catch (...) {
        thrown = std::current_exception();
    }
    Py_END_ALLOW_THREADS;
    if (thrown) std::rethrow_exception(thrown);
    return true;
}

PyObject* raised() {
    torch::translate_exception_to_python(std::current_exception());
    return nullptr;
}

// linear(address of a Layer, x) -> y or None
PyObject* linear(PyObject*, PyObject* const* args, Py_ssize_t n) try {
    if (n != 2) return PyErr_Format(PyExc_TypeError, "linear takes a layer and x");
    Tensors ys;
    if (!multiply((const Layer*)PyLong_AsVoidPtr(args[0]), 1, args[1], ys)) Py_RETURN_NONE;
    return THPVariable_Wrap(std::move(ys[0]));
} catch (const std::exception&) {
    return raised();
}

// linears(address of an array of Layers, their number, x) -> [y, ...] or None
PyObject* linears(PyObject*, PyObject* const* args, Py_ssize_t n) try {
    if (n != 3) return PyErr_Format(PyExc_TypeError, "linears takes layers, their number and x");
    Tensors ys;
    if (!multiply((const Layer*)PyLong_AsVoidPtr(args[0]), PyLong_AsSize_t(args[1]), args[2], ys)) Py_RETURN_NONE;
    PyObject* list = PyList_New((Py_ssize_t)ys.size());
    for (size_t i = 0; list && i < ys.size(); i++) PyList_SET_ITEM(list, (Py_ssize_t)i, THPVariable_Wrap(ys[i]));
    return list;
} catch (const std::exception&) {
    return raised();
}

PyMethodDef methods[] = {{"use", use, METH_VARARGS, nullptr},
                         {"linear", (PyCFunction)(void*)linear, METH_FASTCALL, nullptr},
                         {"linears", (PyCFunction)(void*)linears, METH_FASTCALL, nullptr},
                         {}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "ternary_binding", nullptr, -1, methods, {}, {}, {}, {}};

}  // namespace

PyMODINIT_FUNC PyInit_ternary_binding() { return PyModule_Create(&module); }
