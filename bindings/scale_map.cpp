// Mirrors core/scale_vector.h and core/scale_map.h.
#include <scalevec/core/scale_map.h>

#include "module.h"

namespace scalevec::python {

void bind_scale_map(py::module_& m) {
  py::class_<ScaleVector>(m, "ScaleVector",
                          "The learned scale of one norm site; shares storage with the model.")
      .def_property_readonly("site", &ScaleVector::site)
      .def_property_readonly("dtype", [](const ScaleVector& vector) { return dtype_name(vector.dtype()); })
      .def_property_readonly("stored", &ScaleVector::stored,
                             "(width,), as the model holds it: shared, do not write.")
      .def_property_readonly("bias", &ScaleVector::bias)
      .def("effective", &ScaleVector::effective, "(width,), float64, on the CPU: a copy.")
      .def("digest", &ScaleVector::digest);

  py::class_<ScaleMap, std::shared_ptr<ScaleMap>>(m, "ScaleMap",
                                                  "Every scale vector of one model, in forward order.")
      .def("__len__", &ScaleMap::size)
      .def(
          "__getitem__",
          [](const ScaleMap& map, std::size_t index) {
            if (index >= map.size()) throw py::index_error();
            return map[index];
          },
          "index"_a)
      .def("index_of", &ScaleMap::index_of, "name"_a,
           "By address or native name; AddressError names the nearest.")
      .def(
          "select",
          [](const ScaleMap& map, std::string_view selector) {
            return map.select(Selector::parse(selector));
          },
          "selector"_a)
      .def_property_readonly("sites", &ScaleMap::sites)
      .def("base_digest", &ScaleMap::base_digest, "index"_a)
      .def("base", &ScaleMap::base, "index"_a)
      .def("restore", &ScaleMap::restore, "index"_a, "Puts the base back, bit for bit.");
}

}  // namespace scalevec::python
