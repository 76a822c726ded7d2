// SPDX-License-Identifier: Apache-2.0

// Package contracttest contains the inputs on which admission, controller, node configuration and cache server must
// agree. Each of them has a test that passes every case through its own entry point, so a program that starts to apply
// a rule of its own fails that test.
package contracttest

import (
	"encoding/json"
	"strings"
)

// Address is a host, a URL or a list of proxy exceptions.
type Address struct {
	Input string
	// Canonical is the value that every program uses for Input. It is empty if every program must reject Input.
	Canonical string
}

// Valid reports whether every program must accept the input.
func (a Address) Valid() bool { return a.Canonical != "" }

// MarshalInput returns the input as a JSON string, which is valid in YAML, too.
func (a Address) MarshalInput() string {
	encoded, err := json.Marshal(a.Input)
	if err != nil {
		panic(err) // a string can always be encoded
	}
	return string(encoded)
}

func accept(inputs ...string) []Address {
	var all []Address
	for _, input := range inputs {
		all = append(all, Address{Input: input, Canonical: input})
	}
	return all
}

func reject(inputs ...string) []Address {
	var all []Address
	for _, input := range inputs {
		all = append(all, Address{Input: input})
	}
	return all
}

// longHost returns a host name of n characters in labels of at most 50.
func longHost(n int) string {
	name := strings.Repeat(strings.Repeat("a", 49)+".", n/50)
	if rest := n - len(name); rest > 0 {
		return name + strings.Repeat("b", rest)
	}
	return strings.TrimSuffix(name, ".") + "b"
}

// Hosts are upstreams: host[:port].
func Hosts() []Address {
	valid := accept(
		"docker.io", "ghcr.io:443", "registry.example.com:5000", "localhost", "localhost:1", "localhost:65535",
		"10.1.2.3", "10.1.2.3:5000", "999.999.999.999", "a", "1", "a-b.c-d", "a--b.io", "xn--bcher-kva.example",
		// Values that are no strings in YAML unless they are quoted.
		"1:30", "0x10", "1e3", "0.5", "no", "null", "true", "2026-01-01",
		longHost(253), longHost(249)+":65535",
	)
	invalid := reject(
		// Upper case names another directory on the nodes.
		"Docker.io", "DOCKER.IO:443",
		// Brackets and colons are valid neither in the names of objects nor in their labels.
		"[::1]", "[::1]:5000", "::1", "[fd00::1]", "fd00::1", "[::1%eth0]",
		"docker.io:", "docker.io:0", "docker.io:00443", "docker.io:0443", "docker.io:65536", "docker.io:99999", "docker.io:+443",
		"docker.io:-1", "docker.io:https", "docker.io:443:443", "docker.io: 443", "docker.io:4 43", ":5000", ":",
		"", ".", "..", "docker.io.", ".docker.io", "docker..io", "-docker.io", "docker.io-", "docker-.io", "docker.-io",
		"docker.io/", "docker.io/library", "/docker.io", "../docker.io", "a/../b",
		"https://docker.io", "HTTPS://docker.io", "//docker.io", "https:docker.io",
		"docker.io?", "docker.io?a=b", "docker.io#", "docker.io#a", "user@docker.io", "user:secret@docker.io", "@docker.io",
		"docker_io", "_docker.io", "*.docker.io", "*", "docker.io,ghcr.io", "docker.io;ghcr.io", "docker.io ghcr.io",
		" docker.io", "docker.io ", "\tdocker.io", "docker.io\n", "docker.io\r\n", "docker\x00.io", "docker.io\x00", "docker\x7f.io", "\u00a0docker.io",
		"bücher.example", "докер.io", "docker。io", "docker.io\u200b", "\ufeffdocker.io", "ｄocker.io",
		"docker%2eio", "%64ocker.io", "docker.io%00", "docker.io%0a",
		`docker"io`, `docker.io"`, `docker'io`, `docker\io`, "docker`io", "docker$io", "$(docker.io)", "{docker.io}", "[docker.io]", "<docker.io>", "docker|io",
		longHost(254), longHost(255), longHost(256), longHost(250)+":65535", longHost(300)+":5000",
	)
	return append(valid, invalid...)
}

// RemotePaths are remote URLs with a path. Proxies and endpoints must reject them.
func RemotePaths() []Address {
	valid := accept(
		"https://harbor.example.com/dockerhub", "http://10.1.2.3:5000/a", "https://[fd00::1]:5000/a/b/c", "https://a/a.b_c__d-e---f/1/v1",
		"https://a/v2x", "https://a/a/v2", "https://a/"+strings.Repeat("a/", 63)+"b",
	)
	valid = append(valid,
		Address{"HTTPS://Harbor.example.com/dockerhub/", "https://harbor.example.com/dockerhub"},
		Address{"https://a/b/#", "https://a/b"},
	)
	return append(valid, reject(
		"https://a/v2", "https://a/v2/", "https://a/v2/b", "https://a/B", "https://a/b//c", "https://a/b//", "https://a//b", "https://a/b/../c", "https://a/b/.", "https://a/-b", "https://a/b-",
		"https://a/b._c", "https://a/b___c", "https://a/b..c", "https://a/b:c", "https://a/b@sha256", "https://a/b%20c", "https://a/b c", "https://a/b?c", "https://a/b#c", "https://a/b;c", `https://a/b"`, `https://a/b\c`,
		"https://a/ü", "https://a/b\n", "https://a/b\x00", "https://user:secret@a/b", "https://a/"+strings.Repeat("a/", 63)+"bb",
	)...)
}

// URLs are URLs of servers without a path: remote URLs, proxies and endpoints of caches.
func URLs() []Address {
	valid := accept(
		"https://docker.io", "http://docker.io", "https://registry-1.docker.io", "https://ghcr.io:443", "http://ghcr.io:80", "http://10.1.2.3:5000",
		"https://a:1", "https://a:65535", "https://999.999.999.999", "https://xn--bcher-kva.example", "https://a--b.io",
		"https://[::1]:5000", "https://[fd00::1]", "http://[2001:db8::1]:80", "https://[::ffff:10.1.2.3]:5000",
		"https://"+longHost(253), "https://"+longHost(253)+":65535",
	)
	valid = append(valid,
		Address{"https://docker.io/", "https://docker.io"},
		Address{"http://10.1.2.3:5000/", "http://10.1.2.3:5000"},
		Address{"HTTPS://ghcr.io", "https://ghcr.io"},
		Address{"hTTps://ghcr.io", "https://ghcr.io"},
		Address{"HTTP://ghcr.io/", "http://ghcr.io"},
		Address{"https://Ghcr.IO", "https://ghcr.io"},
		Address{"HTTPS://GHCR.IO:8443/", "https://ghcr.io:8443"},
		// Earlier releases have admitted empty fragments.
		Address{"https://ghcr.io#", "https://ghcr.io"},
		Address{"https://ghcr.io/#", "https://ghcr.io"},
		Address{"HTTPS://ghcr.io/#", "https://ghcr.io"},
		Address{"https://[FD00:0:0::1]:5000/", "https://[fd00::1]:5000"},
	)
	invalid := reject(
		"", "https", "https:", "https:/", "https://", "https:///", "https:///a", "https://:5000", "https://#", "https:ghcr.io", "https:/ghcr.io", "//ghcr.io", "ghcr.io", "ghcr.io:443", "/", "#", "?",
		"ftp://ghcr.io", "httpss://ghcr.io", "http+unix://ghcr.io", "socks5://ghcr.io", "unix:///run/a.sock", "file:///etc/passwd", "oci://ghcr.io", "javascript:alert(1)", "https ://ghcr.io", "://ghcr.io", "1https://ghcr.io",
		"https://ghcr.io:", "https://ghcr.io:/", "https://ghcr.io:0", "https://ghcr.io:00443", "https://ghcr.io:0443", "https://ghcr.io:65536", "https://ghcr.io:99999", "https://ghcr.io:+443",
		"https://ghcr.io:https", "https://ghcr.io:443:443", "https://ghcr.io: 443", "https://ghcr.io:443 ", "https://ghcr.io:٤٤٣",
		"https://ghcr.io/v2", "https://ghcr.io/v2/", "https://ghcr.io//", "https://ghcr.io/.", "https://ghcr.io/..", "https://ghcr.io/ ", "https://ghcr.io/%", "https://ghcr.io/%2f", "https://ghcr.io/%20", "https://ghcr.io/;a", `https://ghcr.io/\`, `https://ghcr.io\`, `https:\\ghcr.io`,
		"https://ghcr.io?", "https://ghcr.io/?", "https://ghcr.io?a=b", "https://ghcr.io/?a=b", "https://ghcr.io?#", "https://ghcr.io#a", "https://ghcr.io/#a", "https://ghcr.io##", "https://ghcr.io#%23", "https://ghcr.io/#%zz",
		"https://user@ghcr.io", "https://user:secret@ghcr.io", "https://@ghcr.io", "https://:@ghcr.io", "https://user:sec@ret@ghcr.io", "user:secret@ghcr.io", "https://user:secret@ghcr.io:x", "https://ghcr.io/@a", "https://ghcr.io#@a",
		"https://ghcr.io.", "https://.ghcr.io", "https://ghcr..io", "https://-ghcr.io", "https://ghcr.io-", "https://ghcr-.io", "https://gh_cr.io", "https://*.ghcr.io", "https://ghcr.io,docker.io", "https://ghcr.io;docker.io",
		"https://[::1", "https://::1", "https://fd00::1", "https://[::1]x", "https://[::1]:", "https://[::1]:0", "https://[fe80::1%25eth0]", "https://[fe80::1%eth0]", "https://[::1%25]:5000", "https://[10.1.2.3]", "https://[ghcr.io]", "https://[]", "https://[:::1]", "https://[v1.a]",
		" https://ghcr.io", "https://ghcr.io ", "\thttps://ghcr.io", "https://ghcr.io\n", "https://ghcr.io\r\n", "https://gh\x00cr.io", "https://ghcr.io\x00", "https://ghcr.io\x7f", "https://gh cr.io", "https://ghcr.io\u00a0", "\ufeffhttps://ghcr.io", "https://ghcr.io\u200b",
		"https://bücher.example", "https://докер.io", "https://ghcr。io", "https://ｇhcr.io", "https://ĸ.io", "https://gh\u212acr.io",
		"https://ghcr%2eio", "https://%67hcr.io", "https://b%C3%BCcher.example", "https://ghcr.io%00", "https://ghcr.io%0a", "https://ghcr.io%3a443", "https://ghcr.io%23",
		`https://gh"cr.io`, `https://ghcr.io"`, `https://gh'cr.io`, `https://gh\cr.io`, "https://gh`cr.io", "https://$(HOST)", "https://gh$cr.io", "https://{a}", "https://<a>", "https://a|b", "https://a^b", "https://a!b", "https://a(b)", "https://a+b", "https://a=b", "https://a&b", "https://a~b",
		"https://"+longHost(254), "https://"+longHost(300)+":5000",
	)
	return append(valid, invalid...)
}

// NoProxies are lists of destinations without a proxy.
func NoProxies() []Address {
	valid := accept(
		"*", "example.com", ".example.com", "*.example.com", "example.com:5000", ".example.com:443", "localhost",
		"10.1.2.3", "10.1.2.3:443", "10.0.0.0/8", "0.0.0.0/0", "10.1.2.3/8", "fd00::1", "fd00::/8", "::/0", "[fd00::1]:443", "::ffff:10.1.2.3",
		"example.com,10.0.0.0/8,*.example.net",
	)
	valid = append(valid,
		Address{" .example.com, example.org:5000 ,*.Example.net,10.1.2.3", ".example.com,example.org:5000,*.example.net,10.1.2.3"},
		Address{"EXAMPLE.com", "example.com"},
		Address{"FD00::1", "fd00::1"},
		Address{"[FD00:0:0::1]:443", "[fd00::1]:443"},
		Address{"a,\n b", "a,b"},
		// httpproxy compares ports as text.
		Address{"10.1.2.3:0443", "10.1.2.3:443"},
		Address{"[fd00::1]:00443", "[fd00::1]:443"},
	)
	invalid := reject(
		"", ",", "a,", ",a", "a,,b", " ", "**", "*a", "*.", ".", "..a", "*.*.a", "a b", "a;b", "http://a", "a/b", "a.", "a..b", "a_b", "bücher.example",
		"a:", "a:0", "a:0443", "a:65536", "a:https", "10.1.2.3:", "10.1.2.3:0", "10.1.2.3:65536", "[fd00::1]:0", "[fd00::1]", "[fd00::1]:", "[a]:443",
		// Not an address for httpproxy.
		"fe80::1%eth0", "[fe80::1%eth0]:443", "fe80::%eth0/64",
		"10.0.0.0/33", "10.0.0.0/", "10.0.0.0/08", "fd00::/129", "10.0.0/8", "user:secret@a", "$(HOME)", "$a", "a\x00", `a"`, `a\b`, "a#", "a?", "a%2eb",
		strings.Repeat("a,", 40_000)+"a",
	)
	return append(valid, invalid...)
}

// Retention is a time to live and watermarks.
type Retention struct {
	// TTL is in the notation of time.ParseDuration.
	TTL string
	// High and Low are percentages; nil if they are left out.
	High, Low *int
	// WantHigh and WantLow are the percentages that every program uses.
	WantHigh, WantLow int
	Valid             bool
}

// Retentions are valid and invalid combinations. Where a value is left out, its default applies.
func Retentions() []Retention {
	n := func(value int) *int { return &value }
	return []Retention{
		{"168h", nil, nil, 90, 80, true},
		{"168h0m0s", n(90), n(80), 90, 80, true},
		{"0s", n(90), n(80), 90, 80, true},
		{"0", nil, nil, 90, 80, true},
		{"-0s", nil, nil, 90, 80, true},
		{"1ns", nil, nil, 90, 80, true},
		{"1.5h", nil, nil, 90, 80, true},
		{"2562047h47m16.854775807s", nil, nil, 90, 80, true},
		{"1h", n(1), n(0), 1, 0, true},
		{"1h", n(100), n(99), 100, 99, true},
		// The default of the low watermark depends on the high one.
		{"1h", n(70), nil, 70, 60, true},
		{"1h", n(100), nil, 100, 90, true},
		{"1h", n(5), nil, 5, 0, true},
		{"1h", n(1), nil, 1, 0, true},
		{"1h", nil, n(0), 90, 0, true},
		{"1h", nil, n(89), 90, 89, true},

		{"-1ns", nil, nil, 0, 0, false},
		{"-168h", nil, nil, 0, 0, false},
		{"2562047h47m16.854775808s", nil, nil, 0, 0, false},
		{"7d", nil, nil, 0, 0, false},
		{"168", nil, nil, 0, 0, false},
		{"", nil, nil, 0, 0, false},
		{"1h ", nil, nil, 0, 0, false},
		{"1h", n(0), nil, 0, 0, false},
		{"1h", n(0), n(0), 0, 0, false},
		{"1h", n(-1), nil, 0, 0, false},
		{"1h", n(101), nil, 0, 0, false},
		{"1h", n(-2147483648), nil, 0, 0, false},
		{"1h", n(2147483647), nil, 0, 0, false},
		{"1h", nil, n(-1), 0, 0, false},
		{"1h", nil, n(90), 0, 0, false},
		{"1h", n(50), n(50), 0, 0, false},
		{"1h", n(50), n(51), 0, 0, false},
	}
}

// JSON returns the fields ttl, highWatermark and lowWatermark that are given, as members of a JSON object without its
// braces: the first part is ttl, the second the watermarks.
func (r Retention) JSON() (ttl, watermarks string) {
	encoded := func(value any) string {
		text, err := json.Marshal(value)
		if err != nil {
			panic(err) // strings and numbers can always be encoded
		}
		return string(text)
	}
	ttl = `"ttl":` + encoded(r.TTL)
	var parts []string
	if r.High != nil {
		parts = append(parts, `"highWatermark":`+encoded(*r.High))
	}
	if r.Low != nil {
		parts = append(parts, `"lowWatermark":`+encoded(*r.Low))
	}
	return ttl, strings.Join(parts, ",")
}
