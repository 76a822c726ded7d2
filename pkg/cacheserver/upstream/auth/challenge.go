// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"net/http"
	"strings"
)

const (
	bearer = "bearer"
	basic  = "basic"

	// maxChallenges and maxParameters limit the parts of the headers of one response that are read. The transport limits
	// the headers to 64 KiB.
	maxChallenges = 16
	maxParameters = 16
)

// Challenge is one challenge of a response with the status 401 (RFC 9110, section 11.3).
type Challenge struct {
	// Scheme is in lower case: "bearer", "basic" or another one.
	Scheme string
	// Parameters have names in lower case. They are empty for a challenge with a token68 instead of parameters.
	Parameters map[string]string
}

// ParseChallenges returns the challenges of all WWW-Authenticate headers in their order. A header can contain several
// challenges, separated by commas (RFC 9110, section 11.6.1). Like containerd, it tolerates invalid headers: it returns the
// part before the first error of each header. Parameters without a comma between them are separate parameters.
func ParseChallenges(header http.Header) []Challenge {
	var all []Challenge
	for _, value := range header.Values("WWW-Authenticate") {
		all = append(all, parseHeader(value)...)
		if len(all) >= maxChallenges {
			return all[:maxChallenges]
		}
	}
	return all
}

// parseHeader parses the value of one header.
func parseHeader(s string) []Challenge {
	var all []Challenge
	for {
		word, rest := cutToken(strings.TrimLeft(s, " \t,"))
		if word == "" {
			return all
		}
		afterSpace := strings.TrimLeft(rest, " \t")
		value, isParameter := strings.CutPrefix(afterSpace, "=")
		if !isParameter {
			all = append(all, Challenge{Scheme: strings.ToLower(word), Parameters: map[string]string{}})
			s = afterSpace
			continue
		}
		if len(all) == 0 {
			return nil // a parameter without a scheme
		}
		if text := strings.TrimLeft(value, "="); text == "" || strings.HasPrefix(strings.TrimLeft(text, " \t"), ",") {
			s = text // the padding of a token68, such as in "Negotiate dGVzdA=="
			continue
		}
		var ok bool
		if value, s, ok = cutValue(strings.TrimLeft(value, " \t")); !ok {
			return all
		}
		parameters := all[len(all)-1].Parameters
		if len(parameters) < maxParameters {
			parameters[strings.ToLower(word)] = value
		}
	}
}

// cutToken returns the token at the beginning of s (RFC 9110, section 5.6.2) and the rest. A slash belongs to the token,
// because it can be part of a token68 (RFC 9110, section 11.2).
func cutToken(s string) (token, rest string) {
	end := strings.IndexFunc(s, func(r rune) bool {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return false
		}
		return !strings.ContainsRune("!#$%&'*+-.^_`|~/", r)
	})
	if end < 0 {
		end = len(s)
	}
	return s[:end], s[end:]
}

// cutValue returns the value of a parameter at the beginning of s and the rest. A value without quotes ends before a
// space or a comma: some registries send a URL without quotes.
func cutValue(s string) (value, rest string, ok bool) {
	quoted, isQuoted := strings.CutPrefix(s, `"`)
	if !isQuoted {
		end := strings.IndexAny(s, " \t,")
		if end < 0 {
			end = len(s)
		}
		return s[:end], s[end:], true
	}
	var text strings.Builder
	for i := 0; i < len(quoted); i++ {
		switch quoted[i] {
		case '"':
			return text.String(), quoted[i+1:], true
		case '\\':
			if i++; i == len(quoted) {
				return "", "", false
			}
		}
		text.WriteByte(quoted[i])
	}
	return "", "", false
}

// choose returns the challenge to respond to: the first Bearer challenge with a realm, as containerd prefers tokens, or the
// first Basic challenge if there are credentials. ok is false if there is no such challenge.
func choose(challenges []Challenge, credentials bool) (chosen Challenge, ok bool) {
	for _, c := range challenges {
		if c.Scheme == bearer && c.Parameters["realm"] != "" {
			return c, true
		}
		if c.Scheme == basic && credentials && !ok {
			chosen, ok = c, true
		}
	}
	return chosen, ok
}

// same reports whether two challenges require the same authorization.
func same(a, b Challenge) bool {
	return a.Scheme == b.Scheme && a.Parameters["realm"] == b.Parameters["realm"] &&
		a.Parameters["service"] == b.Parameters["service"] && a.Parameters["scope"] == b.Parameters["scope"]
}
