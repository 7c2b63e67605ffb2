//! The API from the outside: a client's bytes in and out, over a root that plays a script.
//!
//! The whole system, with a real tree behind the API, is tested elsewhere.

mod client;
mod connections;
mod errors;
mod overload;
mod pages;
mod registry;
mod rig;
mod root;
mod shapes;
mod streams;
