//! The house: the order of the sources, and the servers that the tests stand on.

mod floors;
mod servers;
