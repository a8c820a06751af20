// Mirrors core/address.h, core/site.h and core/selector.h.
#include <scalevec/core/selector.h>
#include <scalevec/core/site.h>

#include "module.h"

namespace scalevec::python {

void bind_sites(py::module_& m) {
  py::class_<Link>(m, "Link", "A linear map beside a norm.")
      .def_readonly("branch", &Link::branch,
                    "q, k, v, o, gate, up, down, router or head; of routed experts experts.gate, ...")
      .def_readonly("native", &Link::native, "Name of its weight in the file.")
      .def("__repr__", [](const Link& link) { return "Link(" + link.branch + ", '" + link.native + "')"; });

  py::class_<Site>(m, "Site",
                   "One norm site of a model: where it stands, and what is known of it without its values.")
      .def_property_readonly("address", [](const Site& site) { return site.address.str(); })
      .def_property_readonly("stack", [](const Site& site) { return site.address.stack(); })
      .def_property_readonly("layer", [](const Site& site) { return site.address.layer(); })
      .def_property_readonly("branch", [](const Site& site) { return site.address.branch(); })
      .def_readonly("native", &Site::native)
      .def_readonly("bias_native", &Site::bias_native)
      .def_property_readonly("role", [](const Site& site) { return role_name(site.role); })
      .def_property_readonly("kind", [](const Site& site) { return statistics_name(site.kind); })
      .def_property_readonly("parametrisation",
                             [](const Site& site) { return parametrisation_name(site.parametrisation); })
      .def_readonly("offset", &Site::offset)
      .def_readonly("eps", &Site::eps)
      .def_readonly("width", &Site::width)
      .def_readonly("group", &Site::group)
      .def_readonly("consumers", &Site::consumers)
      .def_readonly("producers", &Site::producers)
      .def("__repr__", [](const Site& site) { return "Site('" + site.address.str() + "')"; });

  py::class_<Selection>(m, "Selection", "Chosen channels of one site.")
      .def_readonly("site", &Selection::site, "Index of the site.")
      .def_readonly("whole", &Selection::whole, "Whether the selector named no channels.")
      .def_readonly("channels", &Selection::channels, "Ascending.");

  m.def(
      "parse_address", [](std::string_view text) { return Address::parse(text).str(); }, "text"_a,
      "The canonical text of an address; AddressError if `text` is none.");
  m.def(
      "channels_text", [](const std::vector<std::int64_t>& channels) { return channels_text(channels); },
      "channels"_a, "Ascending channels as selectors write them behind @: 17,40:48.");
  m.def(
      "select",
      [](std::string_view selector, const std::vector<Site>& sites) {
        return Selector::parse(selector).select(sites);
      },
      "selector"_a, "sites"_a,
      "Selections in the order of `sites`. AddressError if a term matches nothing, naming the nearest "
      "addresses.");
}

}  // namespace scalevec::python
