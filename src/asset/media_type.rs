//! Media types of what a video service publishes.

/// Extension (lower case) to media type. Types as registered with IANA where they are; the rest as players expect them.
const TYPES: &[(&str, &str)] = &[
    ("aac", "audio/aac"),
    ("avif", "image/avif"),
    ("cmfa", "audio/mp4"),
    ("cmft", "application/mp4"),
    ("cmfv", "video/mp4"),
    ("css", "text/css"),
    ("gif", "image/gif"),
    ("htm", "text/html"),
    ("html", "text/html"),
    ("ico", "image/vnd.microsoft.icon"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("js", "text/javascript"),
    ("json", "application/json"),
    ("m3u8", "application/vnd.apple.mpegurl"),
    ("m4a", "audio/mp4"),
    ("m4s", "video/iso.segment"),
    ("m4v", "video/mp4"),
    ("mkv", "video/matroska"),
    ("mov", "video/quicktime"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("mpd", "application/dash+xml"),
    ("oga", "audio/ogg"),
    ("ogg", "audio/ogg"),
    ("ogv", "video/ogg"),
    ("opus", "audio/ogg"),
    ("png", "image/png"),
    ("srt", "application/x-subrip"),
    ("svg", "image/svg+xml"),
    ("ts", "video/mp2t"),
    ("ttml", "application/ttml+xml"),
    ("txt", "text/plain"),
    ("vtt", "text/vtt"),
    ("webm", "video/webm"),
    ("webp", "image/webp"),
    ("xml", "application/xml"),
];

/// Media type of an asset by its path's extension, in any case; `application/octet-stream` for the unknown.
pub fn media_type_of(path: &str) -> &'static str {
    const UNKNOWN: &str = "application/octet-stream";
    let Some((stem, extension)) = path.rsplit('/').next().unwrap_or(path).rsplit_once('.') else { return UNKNOWN };
    if stem.is_empty() || extension.len() > 5 {
        return UNKNOWN;
    }
    let extension = extension.to_ascii_lowercase();
    TYPES.binary_search_by(|(known, _)| (*known).cmp(&extension)).map_or(UNKNOWN, |at| TYPES[at].1)
}

/// Whether assets of this media type are segments or whole videos, which a service never changes under one name
/// (playlists and pages, which it does, are not).
pub fn is_segment_type(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or(media_type).trim().to_ascii_lowercase();
    (essence.starts_with("video/") || essence.starts_with("audio/") || essence == "application/mp4")
        && !essence.ends_with("mpegurl")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_for_the_binary_search() {
        assert!(TYPES.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn the_extension_decides_in_any_case() {
        assert_eq!(media_type_of("a/b.MP4"), "video/mp4");
        assert_eq!(media_type_of("a.mp4/b"), "application/octet-stream");
        assert_eq!(media_type_of(".mp4"), "application/octet-stream");
        assert_eq!(media_type_of("live.m3u8"), "application/vnd.apple.mpegurl");
    }

    #[test]
    fn playlists_are_no_segments() {
        assert!(is_segment_type("video/mp4; codecs=\"avc1\""));
        assert!(!is_segment_type("audio/mpegurl"));
        assert!(!is_segment_type("application/dash+xml"));
    }
}
