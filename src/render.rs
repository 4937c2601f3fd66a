//! From an event to what a socket gets: the body, the whole event, or one field.
//!
//! One event is rendered once per way of delivery, not once per socket.

use glob::Pattern;

use crate::close_code::CloseFrame;
use crate::config::Deliver;
use crate::event::{Event, NotRenderable, Value};
use crate::frame::{Accounting, Frame, Opcode};

/// What an event does to a socket.
#[derive(Debug)]
pub enum Rendered {
    /// These bytes leave on the wire.
    Frame(Frame),
    /// The socket closes (`websocket.close`).
    Close(CloseFrame),
    /// The route does not deliver this type.
    Filtered,
}

/// How one route turns events into frames.
#[derive(Debug)]
pub struct Delivery {
    deliver: Deliver,
    /// Types that are delivered; empty: all.
    types: Vec<Pattern>,
}

impl Delivery {
    /// The delivery of a route with `deliver` and `events`.
    ///
    /// # Errors
    /// If one of `events` is not a shell glob.
    pub fn new(deliver: Deliver, events: &[String]) -> Result<Self, glob::PatternError> {
        let types = events
            .iter()
            .map(|glob| Pattern::new(glob))
            .collect::<Result<_, _>>()?;
        Ok(Self { deliver, types })
    }

    /// Whether a route delivers events of this type at all.
    pub fn takes(&self, event_type: &str) -> bool {
        self.types.is_empty() || self.types.iter().any(|glob| glob.matches(event_type))
    }

    /// Renders `event`; two types act as the ASGI messages of their names on every route, whatever it delivers.
    ///
    /// # Errors
    /// [`RenderError`] if the event holds what JSON cannot, lacks the field, or is a `websocket.send` without
    /// `text` or `bytes`.
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

/// Why an event does not become a frame.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// It holds what JSON cannot.
    #[error(transparent)]
    NotRenderable(#[from] NotRenderable),
    /// The route delivers one field, and the event has none of that name.
    #[error("it has no field {0:?}")]
    NoField(Box<str>),
    /// A `websocket.send` says nothing to send.
    #[error("it has neither `text` nor `bytes`")]
    NothingToSend,
}

fn text(text: &str, accounting: &Accounting) -> Frame {
    Frame::encode(Opcode::Text, text.as_bytes(), accounting.clone())
}

/// `websocket.send` as in ASGI: `text`, else `bytes`; a key that is None is as good as absent.
fn send_event(event: &Event, accounting: &Accounting) -> Result<Frame, RenderError> {
    match (event.get("text"), event.get("bytes")) {
        (Some(Value::Str(text)), _) => Ok(self::text(text, accounting)),
        (None | Some(Value::Nil), Some(Value::Bin(bytes))) => {
            Ok(Frame::encode(Opcode::Binary, bytes, accounting.clone()))
        }
        _ => Err(RenderError::NothingToSend),
    }
}

/// `websocket.close` as in ASGI: `code` (absent: 1000) and `reason`.
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
        Some(_) => Some(0),
    };
    CloseFrame::from_application(code, reason)
}
