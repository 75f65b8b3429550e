//! The body of a response. It belongs to the session, as its handler does.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::pool::Session;

pin_project! {
    /// A body that is made within a session. Connections that it takes from the pool belong to the session.
    #[derive(Debug)]
    pub struct SessionBody<B> {
        #[pin]
        body: B,
        session: Session,
    }
}

impl<B> SessionBody<B> {
    pub(super) fn new(body: B, session: Session) -> Self {
        Self { body, session }
    }
}

impl<B: Body> Body for SessionBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        // This future lives for one poll. All that must be kept is in the body.
        let frame = poll_fn(|context| this.body.as_mut().poll_frame(context));
        pin!(this.session.scope(frame)).poll(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
