//! The house: the order of the sources, and the servers that the tests stand on.

mod circles;
mod floors;
mod servers;
mod sources;
