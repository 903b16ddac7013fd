//! A queue of keys from which any can be taken: linked by index, since keys are dense.

const NONE: u32 = u32::MAX;

/// New keys come in at the front; the back is the oldest.
#[derive(Debug)]
pub(super) struct Queue {
    /// Neighbour towards the front, and towards the back.
    links: Vec<(u32, u32)>,
    front: u32,
    back: u32,
}

impl Queue {
    pub(super) fn new(keys: usize) -> Self {
        Self { links: vec![(NONE, NONE); keys], front: NONE, back: NONE }
    }

    pub(super) fn push_front(&mut self, key: u32) {
        self.links[key as usize] = (NONE, self.front);
        match self.front {
            NONE => self.back = key,
            front => self.links[front as usize].0 = key,
        }
        self.front = key;
    }

    /// Takes out a key that is in the queue.
    pub(super) fn remove(&mut self, key: u32) {
        let (newer, older) = std::mem::replace(&mut self.links[key as usize], (NONE, NONE));
        match newer {
            NONE => self.front = older,
            newer => self.links[newer as usize].1 = older,
        }
        match older {
            NONE => self.back = newer,
            older => self.links[older as usize].0 = newer,
        }
    }

    /// The oldest.
    pub(super) fn back(&self) -> Option<u32> {
        (self.back != NONE).then_some(self.back)
    }

    /// The next newer one than `key`.
    pub(super) fn newer(&self, key: u32) -> Option<u32> {
        let newer = self.links[key as usize].0;
        (newer != NONE).then_some(newer)
    }
}
