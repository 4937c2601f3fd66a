//! Rendering: turns an event into the frame that a socket gets.
//!
//! The frame holds the event's body, the whole event or one field. An event is rendered once for each route, not once
//! for each socket.

use glob::Pattern;

use crate::close_code::CloseFrame;
use crate::config::{Deliver, Fault, Faults};
use crate::event::{Event, NotRenderable, Value};
use crate::frame::{Accounting, Frame, Opcode};

/// The effect of an event on a socket.
#[derive(Debug)]
pub enum Rendered {
    /// The socket gets this frame.
    Frame(Frame),
    /// The socket closes (`websocket.close`).
    Close(CloseFrame),
    /// The route does not deliver this type.
    Filtered,
}

/// The rules by which one route turns events into frames.
#[derive(Debug)]
pub struct Delivery {
    deliver: Deliver,
    /// The event types that the route delivers; empty means all.
    types: Vec<Pattern>,
}

impl Delivery {
    /// Makes the delivery of a route with `deliver` and `events`.
    ///
    /// # Errors
    /// Every mistake in them, each at its key of the route.
    pub fn new(deliver: Deliver, events: &[String]) -> Result<Self, Faults> {
        let types = events.iter().enumerate().map(|(index, glob)| {
            Pattern::new(glob).map_err(|error| {
                let key = format!("events[{index}]");
                let expected = "a shell glob such as \"chat.*\"";
                Fault::new(key, format!("{glob:?}"), expected).advice(error.msg)
            })
        });
        let mut faults = Vec::new();
        if deliver == Deliver::Field("type".to_owned()) {
            let expected = "a field of the event's body";
            faults.push(Fault::new("deliver", "the type itself", expected));
        }
        match Faults::collect(types) {
            Ok(types) => Faults::or(faults, Self { deliver, types }),
            Err(Faults(more)) => Err(Faults([faults, more].concat())),
        }
    }

    /// Returns true if the route delivers events of this type.
    pub fn takes(&self, event_type: &str) -> bool {
        self.types.is_empty() || self.types.iter().any(|glob| glob.matches(event_type))
    }

    /// Renders `event`. The types `websocket.send` and `websocket.close` act as the ASGI messages of these names on
    /// every route, whatever its `deliver` and `events` say.
    ///
    /// # Errors
    /// [`RenderError`] if JSON cannot express a value of the event, if the event lacks the field, or if it is a
    /// `websocket.send` without `text` and `bytes`.
    pub fn render(&self, event: &Event, accounting: &Accounting) -> Result<Rendered, RenderError> {
        let event_type = event.event_type().unwrap_or_default();
        match event_type {
            "websocket.send" => return send_event(event, accounting).map(Rendered::Frame),
            "websocket.close" => return Ok(Rendered::Close(close_frame(event))),
            _ if !self.takes(event_type) => return Ok(Rendered::Filtered),
            _ => {}
        }
        let mut json = String::new();
        match &self.deliver {
            Deliver::Body => event.write_json(&mut json, true)?,
            Deliver::Event => event.write_json(&mut json, false)?,
            Deliver::Field(name) => match event.get(name) {
                Some(Value::Str(field)) => return Ok(Rendered::Frame(text(field, accounting))),
                Some(value) => value.write_json(&mut json)?,
                None => return Err(RenderError::NoField(name.as_str().into())),
            },
        }
        Ok(Rendered::Frame(text(&json, accounting)))
    }
}

/// A reason for which an event does not become a frame.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The event holds a value that JSON cannot express.
    #[error(transparent)]
    NotRenderable(#[from] NotRenderable),
    /// The event lacks the field that the route delivers.
    #[error("it has no field {0:?}")]
    NoField(Box<str>),
    /// A `websocket.send` holds nothing to send.
    #[error("it has neither `text` nor `bytes`")]
    NothingToSend,
}

fn text(text: &str, accounting: &Accounting) -> Frame {
    Frame::encode(Opcode::Text, text.as_bytes(), accounting.clone())
}

/// Renders a `websocket.send` by the rules of ASGI: `text`, else `bytes`. A key that is None counts as absent.
fn send_event(event: &Event, accounting: &Accounting) -> Result<Frame, RenderError> {
    match (event.get("text"), event.get("bytes")) {
        (Some(Value::Str(text)), _) => Ok(self::text(text, accounting)),
        (None | Some(Value::Nil), Some(Value::Bin(bytes))) => {
            Ok(Frame::encode(Opcode::Binary, bytes, accounting.clone()))
        }
        _ => Err(RenderError::NothingToSend),
    }
}

/// Returns the frame of a `websocket.close` by the rules of ASGI: `code` (1000 if absent) and `reason`.
pub fn close_frame(event: &Event) -> CloseFrame {
    let reason = match event.get("reason") {
        Some(Value::Str(reason)) => reason,
        _ => "",
    };
    let code = match event.get("code") {
        None | Some(Value::Nil) => None,
        Some(Value::Int(code)) => Some(*code),
        Some(Value::UInt(code)) => Some(i64::try_from(*code).unwrap_or(0)),
        // Channels reads `close=True` as "the default code".
        Some(Value::Bool(true)) => None,
        // 0 is no code that an application may send, so `from_application` turns it into 1011.
        Some(_) => Some(0),
    };
    CloseFrame::from_application(code, reason)
}
