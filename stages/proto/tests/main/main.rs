//! Both ends of a connection in one process, and ends that misbehave.

#[cfg(test)]
mod fake;
#[cfg(test)]
mod frames;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod loopback;
