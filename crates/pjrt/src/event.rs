//! Something that will have happened.

use std::sync::Arc;

use crate::Result;
use crate::client::ClientHandle;
use crate::ffi::{self, Arguments, RawEvent};

/// The end of a transfer or an execution.
pub(crate) struct Event {
    client: Arc<ClientHandle>,
    raw: *mut RawEvent,
}

// SAFETY: as for `ClientHandle`.
unsafe impl Send for Event {}

impl Event {
    /// Takes an event over; none for null, which stands for something that has happened.
    ///
    /// # Safety
    /// The event is the client's, and nobody else destroys it.
    pub unsafe fn adopt(client: &Arc<ClientHandle>, raw: *mut RawEvent) -> Option<Self> {
        (!raw.is_null()).then(|| Event { client: Arc::clone(client), raw })
    }

    /// Whether it has happened, well or not.
    pub fn is_ready(&self) -> Result<bool> {
        let mut arguments = ffi::EventIsReady { event: self.raw, ..ffi::EventIsReady::new() };
        // SAFETY: the event is ours and alive.
        unsafe { self.client.plugin.call(&mut arguments)? };
        Ok(arguments.is_ready != 0)
    }

    /// Waits until it has happened.
    ///
    /// # Errors
    /// When what was waited for failed.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the event is ours and alive.
        unsafe { self.client.plugin.call(&mut ffi::EventAwait { event: self.raw, ..ffi::EventAwait::new() }) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let mut arguments = ffi::EventDestroy { event: self.raw, ..ffi::EventDestroy::new() };
        // SAFETY: the event is ours and nothing uses it any more. There is nobody to tell of an error.
        let _ = unsafe { self.client.plugin.call(&mut arguments) };
    }
}
