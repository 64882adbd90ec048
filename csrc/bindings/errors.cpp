// C++ exceptions to the classes of tokenfabric/errors.py, in one place. The Python classes are the
// only ones users see; they are looked up when first needed so that importing _C imports nothing
// else.
#include "token/common/errors.hpp"

#include "bindings.hpp"

namespace token::bindings {

namespace {

py::object error_class(const char* name) {
    return py::module_::import("tokenfabric.errors").attr(name);
}

void raise(const char* name, const char* message) {
    PyErr_SetString(error_class(name).ptr(), message);
}

void raise_comm(const char* name, const CommError& error) {
    const py::object type = error_class(name);
    const py::object instance = type(error.what(),
                                     py::arg("rank") = error.context.rank,
                                     py::arg("peer_rank") = error.context.peer_rank,
                                     py::arg("operation") = error.context.operation,
                                     py::arg("epoch") = error.context.epoch);
    PyErr_SetObject(type.ptr(), instance.ptr());
}

}  // namespace

void register_errors() {
    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) {
                std::rethrow_exception(pointer);
            }
        } catch (const PeerLost& error) {
            raise_comm("PeerLostError", error);
        } catch (const CommTimeout& error) {
            raise_comm("CommTimeoutError", error);
        } catch (const CallMismatch& error) {
            raise_comm("MismatchError", error);
        } catch (const InvalidArgument& error) {
            raise("ConfigError", error.what());
        } catch (const SystemFailure& error) {
            raise("TokenFabricError", error.what());
        }
    });
}

}  // namespace token::bindings
