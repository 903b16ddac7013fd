//! Streams a response from a source to one viewer, without storing it.

use tokio::sync::mpsc;

use super::{
    Context,
    attempts::Attempts,
    check::Reply,
    discover::meta,
    ranking::Route,
    source::{Answer, Ask, AskRange, SourceFault},
};
use crate::{
    asset::ByteRange,
    catalog::{PassHead, PassThrough, PassThroughDemand, Refusal, Want},
};

/// Pieces that may wait for the viewer; the source waits beyond that.
const PIECES_MAX: usize = 8;

impl Context {
    /// Answers a demand of the board, and streams until either end has had enough.
    pub(super) async fn pass_through(&self, demand: PassThroughDemand) {
        if demand.is_abandoned() {
            return;
        }
        match self.open_passing(&demand).await {
            Ok((mut answer, head, left)) => {
                let (pieces, body) = mpsc::channel(PIECES_MAX);
                let nothing = head.unsatisfiable;
                demand.answer(Ok(PassThrough { head, body }));
                if !nothing {
                    stream(&mut answer, left, &pieces).await;
                }
            }
            Err(refusal) => demand.answer(Err(refusal)),
        }
    }

    async fn open_passing(&self, demand: &PassThroughDemand) -> Result<(Answer, PassHead, Option<u64>), Refusal> {
        let mut range = match demand.want() {
            Want::Range { start: 0, end: None } => AskRange::Whole,
            Want::Range { start, end } => AskRange::Part { start, end },
            Want::Suffix(count) => AskRange::Suffix(count),
            Want::Metadata => AskRange::Part { start: 0, end: Some(1) },
        };
        let mut attempts = Attempts::new(self, demand.key(), Route::of(demand.asker())).outside();
        while let Some(source) = attempts.next().await {
            for _ in 0..2 {
                let Some((answer, reply)) = attempts.ask(&source, demand.key(), &Ask::of(range)).await else { break };
                let (part, length, left) = match reply {
                    Reply::Part { part, total } => (Some(part), Some(total), Some(part.len())),
                    Reply::Whole(length) => (None, length, length),
                    Reply::Unsatisfiable(Some(total)) => {
                        Attempts::succeeded(&source);
                        let head = PassHead {
                            meta: meta(&answer.head, total, false),
                            length: Some(total),
                            part: None,
                            unsatisfiable: true,
                        };
                        return Ok((answer, head, None));
                    }
                    // The viewer gets the whole: a range may be ignored, a length that nobody knows cannot be told.
                    Reply::Unsatisfiable(None) => {
                        range = AskRange::Whole;
                        continue;
                    }
                    Reply::NotModified | Reply::Absent(_) => {
                        attempts.failed(&source, demand.key(), SourceFault::WrongRange);
                        break;
                    }
                };
                Attempts::succeeded(&source);
                let part = part.filter(|part| !is_everything(*part, length));
                let head = PassHead {
                    meta: meta(&answer.head, length.unwrap_or(0), false),
                    length,
                    part,
                    unsatisfiable: false,
                };
                return Ok((answer, head, left));
            }
        }
        Err(attempts.refusal())
    }
}

fn is_everything(part: ByteRange, length: Option<u64>) -> bool {
    part.start() == 0 && Some(part.end()) == length
}

/// Hands on what comes. A body that is not as long as announced ends with an error, so that the viewer's is cut too.
async fn stream(answer: &mut Answer, mut left: Option<u64>, pieces: &mpsc::Sender<Result<bytes::Bytes, Refusal>>) {
    loop {
        let piece = match answer.body.next().await {
            Ok(Some(piece)) => Ok(piece),
            Ok(None) if left.is_none_or(|left| left == 0) => return,
            Ok(None) => Err(Refusal::SourceFailed),
            Err(fault) => Err(if fault.is_timeout() { Refusal::SourceTimedOut } else { Refusal::SourceFailed }),
        };
        let piece = piece.and_then(|piece| match left.as_mut() {
            Some(left) => {
                *left = left.checked_sub(piece.len() as u64).ok_or(Refusal::SourceFailed)?;
                Ok(piece)
            }
            None => Ok(piece),
        });
        let over = piece.is_err();
        // A viewer who has left needs no more.
        if pieces.send(piece).await.is_err() || over {
            return;
        }
    }
}
