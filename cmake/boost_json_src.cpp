// Boost.JSON's own sources, compiled here where Boost is present as headers without its compiled libraries.
#include <boost/json/src.hpp>
