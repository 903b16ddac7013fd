//! The status document as HTML. Every text that comes from outside of this file is escaped on its way in ([`Html::text`]).

use serde_json::Value;

use super::words::{bits, bytes, duration, number};

/// HTML in the making.
#[derive(Default)]
struct Html(String);

/// A part of a whole, in percent.
#[derive(Clone, Copy)]
enum Part {
    /// The more, the worse.
    Used(f64),
    /// The more, the better.
    Good(f64),
}

impl Html {
    /// As it stands: for what is written here alone.
    fn raw(&mut self, html: &str) -> &mut Self {
        self.0.push_str(html);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                other => self.0.push(other),
            }
        }
        self
    }

    /// `<tag>text</tag>`; `tag` may have attributes.
    fn tag(&mut self, tag: &str, text: &str) -> &mut Self {
        let name = tag.split(' ').next().unwrap_or(tag);
        self.raw("<").raw(tag).raw(">").text(text).raw("</").raw(name).raw(">")
    }

    /// How much of a whole is used, and whether that is much.
    fn bar(&mut self, part: Part) -> &mut Self {
        let (percent, much) = match part {
            Part::Used(percent) => (percent, if percent >= 90.0 { " much" } else { "" }),
            Part::Good(percent) => (percent, ""),
        };
        let width = if percent.is_finite() { percent.clamp(0.0, 100.0) } else { 0.0 };
        self.raw(&format!(
            "<svg class=\"bar{much}\" viewBox=\"0 0 100 4\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><rect class=\"track\" \
             width=\"100\" height=\"4\"/><rect class=\"used\" width=\"{width:.1}\" height=\"4\"/></svg>"
        ))
    }

    /// A figure with its name, and a bar where there is a whole.
    fn card(&mut self, name: &str, value: &str, (rest, part): (&str, Option<Part>)) -> &mut Self {
        self.raw("<div class=\"card\">").tag("dt", name).tag("dd", value);
        if let Some(part) = part {
            self.bar(part);
        }
        if !rest.is_empty() {
            self.tag("p class=\"rest\"", rest);
        }
        self.raw("</div>")
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn real(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn percent_of(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part * 100.0 / whole } else { 0.0 }
}

/// States that the style knows; anything else gets no class of its own.
const STATES: [&str; 6] = ["serving", "degraded", "overloaded", "starting", "draining", "down"];

fn class_of(state: &str) -> &'static str {
    STATES.into_iter().find(|known| *known == state).unwrap_or("unknown")
}

/// All of the page.
pub(super) fn page(status: &Value) -> String {
    let mut html = Html::default();
    html.raw("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">")
        .raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")
        .raw("<meta name=\"color-scheme\" content=\"light dark\">")
        .tag("title", &format!("{} · {}", text(&status["appliance"]["id"]), text(&status["health"]["state"])))
        .raw("<link rel=\"icon\" href=\"data:,\"><link rel=\"stylesheet\" href=\"page.css\">")
        .raw("<noscript><meta http-equiv=\"refresh\" content=\"10\"></noscript>")
        .raw("<script src=\"page.js\" defer></script></head><body>")
        .raw(&parts(status).replace("<!-- plots -->", PLOTS))
        .raw("<footer><a href=\"status\">status as JSON</a> <a href=\"metrics\">metrics</a> <a href=\"v1/report\">report</a>")
        .raw("<span id=\"link\" role=\"status\"></span></footer></body></html>");
    html.0
}

/// Where page.js draws; hidden where it does not run.
const PLOTS: &str = "<section id=\"plots\" hidden>\
    <figure data-plot=\"egress\"><figcaption>throughput <output></output></figcaption><canvas role=\"img\"></canvas></figure>\
    <figure data-plot=\"hits\"><figcaption>hit ratio <output></output></figcaption><canvas role=\"img\"></canvas></figure>\
    <figure data-plot=\"first_byte\"><figcaption>first byte, 95th percentile <output></output></figcaption><canvas role=\"img\"></canvas></figure>\
    <figure data-plot=\"fill\"><figcaption>fill <output></output></figcaption><canvas role=\"img\"></canvas></figure>\
    <figure data-plot=\"disks\"><figcaption>disks busy <output></output></figcaption><canvas role=\"img\"></canvas></figure>\
    </section>";

/// The parts that change, each with an id by which it is replaced.
pub(super) fn parts(status: &Value) -> String {
    let mut html = Html::default();
    head(&mut html, status);
    reasons(&mut html, &status["health"]);
    figures(&mut html, status);
    html.raw("<!-- plots -->");
    html.raw("<main id=\"tables\">");
    volumes(&mut html, status);
    sources(&mut html, status);
    fill(&mut html, status);
    steering(&mut html, &status["steering"]);
    html.raw("</main>");
    html.0
}

fn head(html: &mut Html, status: &Value) {
    let (state, appliance) = (text(&status["health"]["state"]), &status["appliance"]);
    html.raw("<header id=\"head\" class=\"").raw(class_of(state)).raw("\">").tag("h1", state);
    html.raw("<p>").tag("strong", text(&appliance["id"]));
    for more in [text(&appliance["site"]), &format!("oca {}", text(&status["version"]))] {
        if !more.is_empty() {
            html.raw(" · ").text(more);
        }
    }
    html.raw(" · up ").text(&duration(count(&status["uptime_seconds"]))).raw("</p></header>");
}

/// The worst first, as the document has them.
fn reasons(html: &mut Html, health: &Value) {
    html.raw("<ol id=\"reasons\">");
    let mut all = list(&health["reasons"]).peekable();
    if all.peek().is_none() {
        html.raw("<li class=\"serving\">all is well</li>");
    }
    for reason in all {
        html.raw("<li class=\"").raw(class_of(text(&reason["severity"]))).raw("\">").text(text(&reason["words"]));
        html.raw(" ").tag("code", text(&reason["code"])).raw("</li>");
    }
    html.raw("</ol>");
}

fn figures(html: &mut Html, status: &Value) {
    let (load, traffic) = (&status["load"], &status["traffic"]);
    let short = |value: &Value| real(&value["short"]);
    let egress = short(&load["egress"]["bits_per_second"]);
    let capacity = real(&load["egress"]["capacity"]["bits_per_second"]);
    let of = if capacity > 0.0 { format!("of {}", bits(capacity)) } else { "capacity not known".into() };
    html.raw("<dl id=\"figures\">");
    html.card("egress", &bits(egress), (&of, (capacity > 0.0).then(|| Part::Used(percent_of(egress, capacity)))));
    let headroom = &load["headroom"];
    let left = headroom["bits_per_second"].as_f64().map_or("not known yet".into(), bits);
    let limit = headroom["limited_by"].as_str().map_or(String::new(), |limit| format!("{limit} ends first"));
    html.card("headroom", &left, (&limit, None));
    let hits = traffic["hit_percent"].as_f64().map_or("no requests".into(), |percent| format!("{percent:.1} %"));
    html.card("hit ratio", &hits, ("of the last second", traffic["hit_percent"].as_f64().map(Part::Good)));
    html.card("requests", &format!("{:.1}/s", short(&load["requests"])), ("", None));
    let busiest = list(&load["cpu"]["workers"]).map(short).fold(0.0, f64::max) * 100.0;
    let workers = format!("busiest of {} workers", count(&status["workers"]));
    html.card("cpu", &format!("{busiest:.0} %"), (&workers, Some(Part::Used(busiest))));
    let (open, most) = (count(&load["connections"]["open"]), count(&load["connections"]["max"]));
    let part = percent_of(open as f64, most as f64);
    html.card("connections", &number(open), (&format!("of {}", number(most)), Some(Part::Used(part))));
    html.raw("</dl>");
}

fn table(html: &mut Html, name: &str, columns: &[&str]) {
    html.raw("<section><h2>").text(name).raw("</h2><div class=\"wide\"><table><thead><tr>");
    for column in columns {
        html.tag("th scope=\"col\"", column);
    }
    html.raw("</tr></thead><tbody>");
}

const END: &str = "</tbody></table></div></section>";

fn volumes(html: &mut Html, status: &Value) {
    let assets = number(count(&status["catalog"]["assets"]));
    table(html, &format!("cache: {assets} assets"), &["volume", "held", "", "disk busy", "state"]);
    for volume in list(&status["volumes"]) {
        let path = text(&volume["path"]);
        let (used, capacity) = (count(&volume["used_bytes"]), count(&volume["capacity_bytes"]));
        let disk = list(&status["load"]["disks"]).find(|disk| disk["volume"] == path);
        let busy = disk.map_or("–".into(), |disk| format!("{:.0} %", real(&disk["busy"]["short"]) * 100.0));
        let state = text(&volume["state"]);
        html.raw("<tr>").tag("th scope=\"row\"", path);
        html.tag("td", &format!("{} of {}", bytes(used), bytes(capacity))).raw("<td>");
        // A full cache is a good one: eviction keeps it below its brim.
        html.bar(Part::Good(percent_of(used as f64, capacity as f64))).raw("</td>").tag("td", &busy);
        let class = if state == "failed" { "td class=\"down\"" } else { "td" };
        html.tag(class, volume["failure"].as_str().unwrap_or(state)).raw("</tr>");
    }
    html.raw(END);
}

fn sources(html: &mut Html, status: &Value) {
    table(html, "sources", &["source", "fetches", "bytes", "errors", "state"]);
    for source in list(&status["sources"]) {
        let errors: u64 = source["errors"].as_object().into_iter().flat_map(|errors| errors.values()).map(count).sum();
        html.raw("<tr>").tag("th scope=\"row\"", text(&source["name"]));
        html.tag("td", &number(count(&source["fetches"]))).tag("td", &bytes(count(&source["bytes"])));
        html.tag("td", &number(errors));
        if source["set_aside"] == true {
            html.tag("td class=\"degraded\"", "set aside");
        } else {
            html.tag("td", "asked");
        }
        html.raw("</tr>");
    }
    html.raw(END);
}

fn fill(html: &mut Html, status: &Value) {
    let (fill, manifest) = (&status["fill"], &status["manifest"]);
    table(html, "fill ahead", &["manifest", "held", "", "rate", "window"]);
    html.raw("<tr>");
    let name = match manifest["sequence"].as_u64() {
        Some(sequence) => format!("{sequence}, {} assets", number(count(&manifest["assets"]))),
        None => "none".into(),
    };
    html.tag("th scope=\"row\"", &name);
    let (held, wanted) = (&fill["held"], &fill["wanted"]);
    let assets = format!("{} of {} assets", number(count(&held["assets"])), number(count(&wanted["assets"])));
    html.tag("td", &assets).raw("<td>");
    html.bar(Part::Good(percent_of(real(&fill["here_bytes"]), real(&wanted["bytes"])))).raw("</td>");
    html.tag("td", &bits(real(&fill["bytes_per_second"]) * 8.0));
    let window = match text(&fill["window"]["state"]) {
        "open" if fill["rate_bits_per_second"] == 0 => "open, nothing to fetch".into(),
        "open" => format!("open, at most {}", bits(real(&fill["rate_bits_per_second"]))),
        other => other.to_owned(),
    };
    html.tag("td", &window).raw("</tr>").raw(END);
}

fn steering(html: &mut Html, services: &Value) {
    if list(services).next().is_none() {
        return;
    }
    table(html, "reports", &["steering service", "last taken", "taken", "not taken", "trouble"]);
    for service in list(services) {
        let ago = service["delivered_seconds_ago"].as_u64();
        html.raw("<tr>").tag("th scope=\"row\"", text(&service["name"]));
        html.tag("td", &ago.map_or("never".into(), |ago| format!("{} ago", duration(ago))));
        let reports = &service["reports"];
        let taken = count(&reports["delivered"]);
        let not: u64 = reports.as_object().into_iter().flat_map(|all| all.values()).map(count).sum::<u64>() - taken;
        html.tag("td", &number(taken)).tag("td", &number(not));
        let trouble = text(&service["trouble"]);
        html.tag(if trouble.is_empty() { "td" } else { "td class=\"degraded\"" }, trouble).raw("</tr>");
    }
    html.raw(END);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_that_is_told_becomes_markup() {
        let evil = "<script>alert('&\"')</script>";
        let reason = json!({ "code": evil, "severity": evil, "words": evil, "subject": evil });
        let status = json!({
            "appliance": { "id": evil, "site": evil },
            "version": evil,
            "health": { "state": evil, "reasons": [reason] },
            "volumes": [{ "path": evil, "state": evil, "failure": evil }],
            "sources": [{ "name": evil, "errors": { evil: 1 } }],
            "manifest": { "sequence": evil },
            "fill": { "window": { "state": evil } },
            "load": { "headroom": { "limited_by": evil } },
            "steering": [{ "name": evil, "trouble": evil, "reports": { "delivered": 0 } }],
        });
        let html = page(&status);
        assert!(!html.contains("<script>") && !html.contains("alert('"), "{html}");
        assert!(html.matches("&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;").count() >= 8, "{html}");
    }

    #[test]
    fn a_document_that_lacks_everything_is_a_page_too() {
        let html = page(&json!({}));
        assert!(html.contains("all is well") && html.ends_with("</html>"), "{html}");
    }
}
