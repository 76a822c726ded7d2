// SPDX-License-Identifier: Apache-2.0

package contract

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	// MaxHost is the maximum length of an upstream, in bytes. The upstream is the name of a directory on the nodes, and
	// Linux limits a name to 255 bytes (NAME_MAX). A longer name would make gardener-node-agent fail to apply the whole
	// OperatingSystemConfig.
	MaxHost = 255
	// MaxNoProxy is the maximum length of a list of proxy exceptions, in bytes. Linux limits one environment variable to
	// 128 KiB (MAX_ARG_STRLEN); a container with a longer one does not start.
	MaxNoProxy = 64 << 10

	// MaxRemotePath is the maximum length of the path of a remote URL, in bytes. Clients limit host and repository name to
	// 255 characters together (OCI distribution specification), so half of it remains for the name in image references.
	MaxRemotePath = 128

	// maxDomain is the maximum length of a domain name (RFC 1123, and Kubernetes' DNS subdomains).
	maxDomain = 253
)

// AddressError explains why a value is not a host, a URL or a list of proxy exceptions.
type AddressError struct {
	// Rule is the grammar, and Example a valid value.
	Rule, Example string
	// Detail is the violated part of the rule, for example "without a scheme". It is empty if no single part is violated.
	Detail string
	// Suggestion is a valid value similar to the rejected one, or empty.
	Suggestion string
	// Secret reports that the rejected value may contain a credential and must not be shown.
	Secret bool
}

// Error returns the rule and the remedy. It does not contain the rejected value.
func (e *AddressError) Error() string {
	text := e.Rule
	if e.Example != "" {
		text += ", for example " + e.Example
	}
	if e.Detail != "" {
		text += ", " + e.Detail
	}
	if e.Suggestion != "" {
		text += fmt.Sprintf("; write %q", e.Suggestion)
	}
	return text
}

// ParseHost checks the host of image references: a DNS name or an IPv4 address in lower case, with an optional port from
// 1 to 65535 without leading zeros, of at most MaxHost bytes. A host has one spelling only, because it becomes the name
// of a directory and of objects: the returned value equals s. An error is an *AddressError.
//
// IPv6 literals are not supported: brackets and colons are valid neither in the names of the objects of a cache nor in
// their labels.
func ParseHost(s string) (string, error) {
	fail := func(detail, candidate string) (string, error) {
		err := &AddressError{Rule: "must be host[:port]", Example: "docker.io", Detail: detail, Secret: mayContainSecret(s)}
		if candidate = lower(candidate); isHostPort(candidate) && len(candidate) <= MaxHost {
			err.Suggestion = candidate
		}
		return "", err
	}
	candidate := s
	if _, after, found := strings.Cut(candidate, "://"); found {
		candidate = after
	}
	candidate, _, _ = strings.Cut(candidate, "/")
	switch {
	case strings.Contains(s, "@"):
		// The part before the @ may be a password.
		return "", &AddressError{Rule: "must be host[:port]", Example: "docker.io", Detail: "without user name or password", Secret: true}
	case isIPv6(candidate):
		return "", &AddressError{
			Rule: "must be host[:port]", Example: "registry.example.com:5000",
			Detail: "with a DNS name instead of an IPv6 address, also in image references; only remoteURL may have an IPv6 address",
			Secret: mayContainSecret(s),
		}
	case strings.Contains(s, "://"):
		return fail("without a scheme", candidate)
	case strings.Contains(s, "/"):
		return fail("without a path", candidate)
	case lower(s) != s:
		return fail("in lower case", candidate)
	case len(s) > MaxHost:
		return "", &AddressError{Rule: fmt.Sprintf("must have at most %d characters, because it is the name of a directory on the nodes", MaxHost), Secret: mayContainSecret(s)}
	case !isHostPort(s):
		return "", &AddressError{Rule: "must be host[:port]", Example: "docker.io or registry.example.com:5000", Secret: mayContainSecret(s)}
	}
	return s, nil
}

// URL is the address of a server. The zero value is invalid.
type URL struct {
	// Scheme is "http" or "https".
	Scheme string
	// Host is host[:port]: a DNS name, an IPv4 address, or an IPv6 address in brackets, in lower case; the port is from
	// 1 to 65535 without leading zeros.
	Host string
	// Path is empty, or the beginning of the names of repositories, "/project" or "/a/b": it begins with a slash and does
	// not end with one. Only remote URLs have it.
	Path string
}

// String returns the canonical form, scheme://host[:port][/path] without a slash at the end.
func (u URL) String() string { return u.Scheme + "://" + u.Host + u.Path }

// ParseRemoteURL parses the URL of a registry: http or https, host, optional port and optional path. Scheme and host are
// case-insensitive (RFC 3986, section 6.2.2.1). A slash, an empty fragment (#), or "/#" at the end is dropped, because
// earlier releases have admitted such URLs. User information, query, and IPv6 zones are errors. An error is an
// *AddressError.
//
// The path precedes the name of each repository: with https://harbor.example.com/hub, the manifest v1 of library/alpine is
// at https://harbor.example.com/v2/hub/library/alpine/manifests/v1. It consists of components of repository names (OCI
// distribution specification, "Pulling manifests") and has at most MaxRemotePath bytes.
func ParseRemoteURL(s string) (URL, error) { return parseURL(s, "https://registry.example.com", true) }

// ParseProxyURL parses the URL of a proxy, with the grammar of ParseRemoteURL without a path.
func ParseProxyURL(s string) (URL, error) { return parseURL(s, "http://proxy.example.com:3128", false) }

// ParseEndpoint parses the URL under which nodes reach a cache, with the grammar of ParseRemoteURL without a path.
func ParseEndpoint(s string) (URL, error) { return parseURL(s, "https://10.96.0.10:5000", false) }

func parseURL(s, example string, allowPath bool) (URL, error) {
	fail := func(detail string) (URL, error) {
		return URL{}, &AddressError{Rule: "must be http or https with a host and an optional port", Example: example, Detail: detail, Secret: mayContainSecret(s)}
	}
	s, _ = strings.CutSuffix(s, "#")
	scheme, rest, _ := strings.Cut(s, "://")
	scheme = lower(scheme)
	authority, path, hasPath := strings.Cut(rest, "/")
	switch {
	case strings.Contains(s, "@"):
		return fail("without user name or password")
	case strings.ContainsAny(s, "?#"):
		return fail("without query or fragment")
	case scheme != "http" && scheme != "https":
		return fail("")
	}
	host, ok := canonicalHost(authority)
	if !ok {
		return fail("")
	}
	parsed := URL{Scheme: scheme, Host: host}
	switch {
	case !hasPath || path == "":
		return parsed, nil
	case !allowPath:
		return fail("without a path")
	}
	parsed.Path = "/" + strings.TrimSuffix(path, "/")
	if !isRemotePath(parsed.Path) {
		return URL{}, &AddressError{
			Rule:    fmt.Sprintf("must have no path, or the beginning of a repository name in lower case of at most %d bytes, without v2", MaxRemotePath),
			Example: example + "/project", Secret: mayContainSecret(s),
		}
	}
	return parsed, nil
}

// component is a component of a repository name in the OCI distribution specification.
var component = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*$`)

// isRemotePath reports whether path is a slash and components of a repository name. The first one must not be "v2": it
// would most likely be the base of the registry API instead of a part of the name.
func isRemotePath(path string) bool {
	if len(path) > MaxRemotePath || path == "/v2" || strings.HasPrefix(path, "/v2/") {
		return false
	}
	for part := range strings.SplitSeq(path[1:], "/") {
		if !component.MatchString(part) {
			return false
		}
	}
	return true
}

// mayContainSecret reports whether an invalid address may contain a credential: user information, also with an encoded
// "@", or a query or fragment, which may contain a token. "https://user:password" has the form host:port; a port that is
// neither a number, the name of a scheme, nor a part of an IPv6 address is therefore treated as a password.
func mayContainSecret(s string) bool {
	if strings.ContainsAny(s, "@?#") || strings.Contains(s, "%40") {
		return true
	}
	if _, rest, found := strings.Cut(s, ":/"); found {
		s = rest
	}
	authority, _, _ := strings.Cut(strings.TrimLeft(s, "/"), "/")
	_, port, _ := strings.Cut(authority, ":")
	isNamed := port == "http" || port == "https"
	return !isNamed && strings.Trim(port, "0123456789") != "" && strings.Trim(authority, "0123456789abcdefABCDEF:.[]") != ""
}

// isIPv6 reports whether s is an IPv6 address, also with brackets, a port, or a zone.
func isIPv6(s string) bool {
	literal, _, _ := strings.Cut(strings.TrimPrefix(s, "["), "]")
	address, err := netip.ParseAddr(literal)
	return err == nil && address.Is6()
}

// canonicalHost returns host[:port] with the host in lower case and an IPv6 address in its shortest form.
func canonicalHost(s string) (string, bool) {
	literal, isIPv6 := strings.CutPrefix(s, "[")
	if !isIPv6 {
		s = lower(s)
		return s, isHostPort(s)
	}
	literal, port, closed := strings.Cut(literal, "]")
	address, err := netip.ParseAddr(literal)
	if !closed || err != nil || !address.Is6() || address.Zone() != "" {
		return "", false
	}
	if number, found := strings.CutPrefix(port, ":"); port != "" && (!found || !isPort(number)) {
		return "", false
	}
	return "[" + address.String() + "]" + port, true
}

// ParseNoProxy parses a list of destinations without a proxy, separated by commas, and returns it in canonical form:
// without white space, in lower case, ports without leading zeros. Each entry must have an effect in
// golang.org/x/net/http/httpproxy, which the cache server uses: "*", a domain ("example.com" includes its subdomains,
// ".example.com" and "*.example.com" are the subdomains only), an IP address, or an IP range in CIDR notation. Domains and
// IP addresses can have a port. An error is an *AddressError.
func ParseNoProxy(s string) (string, error) {
	entries := strings.Split(s, ",")
	// The list may contain a URL with a password.
	secret := slices.ContainsFunc(entries, mayContainSecret)
	if len(s) > MaxNoProxy {
		return "", &AddressError{Rule: fmt.Sprintf("must have at most %d bytes", MaxNoProxy), Secret: secret}
	}
	for i, entry := range entries {
		canonical, ok := canonicalNoProxy(lower(strings.TrimSpace(entry)))
		if !ok {
			return "", &AddressError{
				Rule:    fmt.Sprintf("entry %d must be a domain, an IP address or an IP range; separate entries by commas", i+1),
				Example: ".example.com,10.0.0.0/8",
				Secret:  secret,
			}
		}
		entries[i] = canonical
	}
	return strings.Join(entries, ","), nil
}

func canonicalNoProxy(entry string) (string, bool) {
	if prefix, err := netip.ParsePrefix(entry); err == nil {
		return prefix.String(), true
	}
	// httpproxy parses addresses by net.ParseIP, which rejects zones.
	if address, err := netip.ParseAddr(entry); err == nil {
		return address.String(), address.Zone() == ""
	}
	// httpproxy compares ports as strings, so "0443" would match no request.
	if address, err := netip.ParseAddrPort(entry); err == nil {
		return address.String(), address.Addr().Zone() == "" && address.Port() != 0
	}
	domain, wildcard := strings.CutPrefix(entry, "*.")
	if !wildcard {
		domain = strings.TrimPrefix(entry, ".")
	}
	return entry, entry == "*" || isHostPort(domain)
}

// isHostPort reports whether s is a DNS name or an IPv4 address in lower case, with or without a port.
func isHostPort(s string) bool {
	host, port, hasPort := strings.Cut(s, ":")
	return isDomain(host) && (!hasPort || isPort(port))
}

// isPort reports whether s is a number from 1 to 65535 in its only spelling: "0443" would name the same registry a
// second time.
func isPort(s string) bool {
	number, err := strconv.ParseUint(s, 10, 16)
	return err == nil && number > 0 && strconv.FormatUint(number, 10) == s
}

// isDomain reports whether s is a DNS subdomain as Kubernetes defines it for names: labels of lower-case letters, digits
// and dashes, separated by dots, of at most 253 characters. A label neither begins nor ends with a dash.
func isDomain(s string) bool {
	if len(s) > maxDomain {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}

// lower converts ASCII letters only. Unicode's rules would turn the Kelvin sign into a k.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + ('a' - 'A')
		}
		return r
	}, s)
}
