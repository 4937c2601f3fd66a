//! Bad inputs, wherever others can put bytes: requests, frames, events, control messages, stored values, names, ids.

mod catalogue;
mod control;
mod control_floods;
mod events;
mod frames;
mod ids;
mod names;
mod upgrades;
mod values;
