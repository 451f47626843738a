//! Stores from outside: what was recorded is what is read, whatever happens in between.

mod bounds;
mod crash;
mod damage;
mod queries;
mod support;
