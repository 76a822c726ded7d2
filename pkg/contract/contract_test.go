// SPDX-License-Identifier: Apache-2.0

package contract

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/contract/contracttest"
)

// parsers are the parsers of addresses with the cases that they must decide.
func parsers() map[string]struct {
	parse func(string) (string, error)
	cases []contracttest.Address
} {
	url := func(parse func(string) (URL, error)) func(string) (string, error) {
		return func(s string) (string, error) {
			parsed, err := parse(s)
			if err != nil {
				return "", err
			}
			return parsed.String(), nil
		}
	}
	return map[string]struct {
		parse func(string) (string, error)
		cases []contracttest.Address
	}{
		"host":      {ParseHost, contracttest.Hosts()},
		"remoteURL": {url(ParseRemoteURL), append(contracttest.URLs(), contracttest.RemotePaths()...)},
		"proxy":     {url(ParseProxyURL), contracttest.URLs()},
		"endpoint":  {url(ParseEndpoint), contracttest.URLs()},
		"noProxy":   {ParseNoProxy, contracttest.NoProxies()},
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for name, parser := range parsers() {
		for _, tc := range parser.cases {
			got, err := parser.parse(tc.Input)
			if (err == nil) != tc.Valid() || got != tc.Canonical {
				t.Errorf("%s %.100q: got %q, %v, want %q", name, tc.Input, got, err, tc.Canonical)
			}
			failure, ok := errors.AsType[*AddressError](err)
			if err != nil && (!ok || failure.Rule == "") {
				t.Errorf("%s %.100q: %T %v, want an AddressError with a rule", name, tc.Input, err, err)
			}
			if strings.Contains(tc.Input, "secret") && err != nil && (!failure.Secret || strings.Contains(err.Error(), "secret")) {
				t.Errorf("%s %q: the error shows the password, or allows its caller to show it: %v", name, tc.Input, err)
			}
		}
	}
}

func TestSuggestions(t *testing.T) {
	t.Parallel()
	const ipv6 = `must be host[:port], for example registry.example.com:5000, with a DNS name instead of an IPv6 address, also in image references; only remoteURL may have an IPv6 address`
	for input, want := range map[string]string{
		"https://docker.io":          `must be host[:port], for example docker.io, without a scheme; write "docker.io"`,
		"HTTPS://Docker.io:5000/v2/": `must be host[:port], for example docker.io, without a scheme; write "docker.io:5000"`,
		"docker.io/library":          `must be host[:port], for example docker.io, without a path; write "docker.io"`,
		"Docker.io":                  `must be host[:port], for example docker.io, in lower case; write "docker.io"`,
		"Docker_io":                  `must be host[:port], for example docker.io, in lower case`,
		// The Kelvin sign is not a k.
		"https://\u212adocker.io": `must be host[:port], for example docker.io, without a scheme`,
		"docker_io":               `must be host[:port], for example docker.io or registry.example.com:5000`,
		// An IPv6 address, in any form.
		"[fd00::1]:5000":                  ipv6,
		"[fd00::1]":                       ipv6,
		"fd00::1":                         ipv6,
		"[FD00::1]:5000":                  ipv6,
		"[fe80::1%eth0]:5000":             ipv6,
		"https://[fd00::1]:5000/":         ipv6,
		"me:secret@docker.io":             `must be host[:port], for example docker.io, without user name or password`,
		strings.Repeat("a.", 127) + "b:5": `must have at most 255 characters, because it is the name of a directory on the nodes`,
	} {
		if _, err := ParseHost(input); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", input, err, want)
		}
	}
}

// A rejected value that may contain a credential is marked, whichever rule it violates first.
func TestSecrets(t *testing.T) {
	t.Parallel()
	all := parsers()
	for _, input := range []string{
		"ftp://robot:hunter2", "ssh://robot:hunter2@registry.example.com", "https://robot:hunter2", "https://robot:hunter2/v2/", "HTTPS://Robot:hunter2",
		"https://robot:hunter2%40registry.example.com", "robot:hunter2", "robot:hunter2/", "Robot:hunter2",
		"https://registry.example.com?token=hunter2", "https://registry.example.com/v2/?sig=hunter2", "registry.example.com/v2?sig=hunter2", "registry.example.com#hunter2",
		"https://registry.example.com:5000:hunter2", "//robot:hunter2", "https:/robot:hunter2", "https:robot:hunter2",
	} {
		for name, parser := range all {
			_, err := parser.parse(input)
			failure, ok := errors.AsType[*AddressError](err)
			if !ok || !failure.Secret || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s %q: got %#v, want a secret that the error does not contain", name, input, err)
			}
		}
	}
	for name, input := range map[string]string{"host": "Docker.io:5000/library/alpine:3.13", "remoteURL": "ftp://ghcr.io:5000/v2", "endpoint": "10.96.0.10:5000", "noProxy": "a b:443,[fd00::1]"} {
		_, err := all[name].parse(input)
		if failure, ok := errors.AsType[*AddressError](err); !ok || failure.Secret {
			t.Errorf("%s %q: got %#v, want an error that allows to show the value", name, input, err)
		}
	}
}

// Every accepted value is stable, and contains no byte with a meaning in TOML, YAML, a shell or a path.
func FuzzAddresses(f *testing.F) {
	for _, parser := range parsers() {
		for _, tc := range parser.cases {
			f.Add(tc.Input)
		}
	}
	f.Fuzz(func(t *testing.T, input string) {
		for name, parser := range parsers() {
			canonical, err := parser.parse(input)
			if err != nil {
				continue
			}
			if again, err := parser.parse(canonical); err != nil || again != canonical {
				t.Errorf("%s %q is %q, which is %q, %v", name, input, canonical, again, err)
			}
			if strings.Trim(canonical, "abcdefghijklmnopqrstuvwxyz0123456789-._:/[],*") != "" || strings.Contains(canonical, "..") {
				t.Errorf("%s %q is %q", name, input, canonical)
			}
		}
	})
}

func TestRetention(t *testing.T) {
	t.Parallel()
	for _, tc := range contracttest.Retentions() {
		ttl, err := time.ParseDuration(tc.TTL)
		high := DefaultHighWatermark
		if tc.High != nil {
			high = *tc.High
		}
		low := DefaultLowWatermark(high)
		if tc.Low != nil {
			low = *tc.Low
		}
		err = errors.Join(err, CheckTTL(ttl), CheckHighWatermark(high), CheckLowWatermark(low, high))
		if (err == nil) != tc.Valid || err == nil && (high != tc.WantHigh || low != tc.WantLow) {
			t.Errorf("%+v: got %d, %d, %v", tc, high, low, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ content, want, username, password string }{
		{"robot", "robot", "", ""},
		{"robot\r\n\n", "robot", "", ""},
		{"a b", "a b", "must not have white space", ""},
		{"a\n b", "a\n b", "must not have white space", ""},
		{"a:b", "a:b", "must not have a colon", ""},
		{"", "", "must not be blank", "must not be blank"},
		{" \n", " ", "must not be blank", "must not be blank"},
		{"caf\xe9", "caf\xe9", "must be UTF-8", "must be UTF-8"},
		{"a\x00b", "a\x00b", "", ""},
		{"a\x7fb", "a\x7fb", "must not have the characters", "must not have the characters"},
		{"{\"a\":\r\n\t\"b\"}\n", "{\"a\":\r\n\t\"b\"}", "must not have white space", ""},
		{"a\uffff", "a\uffff", "must not have the characters", "must not have the characters"},
		{strings.Repeat("x", MaxCredential), strings.Repeat("x", MaxCredential), "", ""},
		{strings.Repeat("x", MaxCredential+1), strings.Repeat("x", MaxCredential+1), "must have at most 65536 bytes", "must have at most 65536 bytes"},
	} {
		got := Credential([]byte(tc.content))
		if got != tc.want {
			t.Errorf("%.50q: got %.50q", tc.content, got)
		}
		for want, err := range map[string]error{"username: " + tc.username: CheckUsername(got), "password: " + tc.password: CheckPassword(got)} {
			kind, want, _ := strings.Cut(want, ": ")
			if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%s %.50q: got %v, want %s", kind, tc.content, err, want)
			}
		}
	}
}

func TestDecodeVolumeState(t *testing.T) {
	t.Parallel()
	const unreadable = "volume state: must be a JSON object with version, state, reason, message and since"
	for body, want := range map[string]string{
		`{"version":1,"state":"ok","reason":"Usable","message":"","since":"2026-01-01T00:00:00Z","aFieldOfTomorrow":1}`: "",
		`{"version":1,"state":"hung","reason":"NoResponse"}`:                                                            "",
		`{"version":1,"state":"ok","reason":"NoResponse"}`:                                                              `volume state: state must be "hung" for reason NoResponse`,
		`{"version":1,"state":"error","reason":"a reason with spaces"}`:                                                 "volume state: unknown reason",
		`{"version":2,"state":"ok","reason":"Usable"}`:                                                                  "volume state: version must be 1",
		`{"state":"ok","reason":"Usable"}`:                                                                              "volume state: version must be 1",
		`null`:                                                                                                          "volume state: version must be 1",
		`<html>`:                                                                                                        unreadable,
		``:                                                                                                              unreadable,
		`{"version":1,"since":1}`:                                                                                       unreadable,
		`{"version":1,"state":"ok","reason":"Usable"}` + strings.Repeat(" ", MaxVolumeState): "volume state: more than 65536 bytes",
	} {
		_, err := DecodeVolumeState([]byte(body))
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%.100s: got %v, want %s", body, err, want)
		}
	}
	long := strings.Repeat("é", MaxVolumeMessage)
	problems := slices.Repeat([]VolumeProblem{{Path: long, Message: long}}, MaxVolumeProblems+1)
	for reason := range volumeConditions {
		sent := NewVolumeState(reason, long, time.Now(), problems)
		body, err := json.Marshal(sent)
		if err != nil {
			t.Fatal(err)
		}
		if state, err := DecodeVolumeState(body); err != nil || !reflect.DeepEqual(state, sent) ||
			len(state.Message) > MaxVolumeMessage || !strings.HasSuffix(state.Message, "é…") || len(state.Problems) != MaxVolumeProblems || state.Problems[0].Path != state.Message {
			t.Errorf("%s: got %+v, %v, want %+v", reason, state, err, sent)
		}
	}
}

func TestDecodeUpstreamState(t *testing.T) {
	t.Parallel()
	const unreadable = "upstream state: must be a JSON object with reachable, reason and message"
	for body, want := range map[string]string{
		`{"reachable":"yes","reason":"Answers","message":"m","aFieldOfTomorrow":1}`: "",
		`{"reachable":"unknown","reason":"NotAsked"}`:                               "",
		`{"reachable":"no","reason":"Failing","since":"2026-01-01T00:00:00Z"}`:      "",
		`{"reachable":"yes","reason":"Failing"}`:                                    `upstream state: reachable must be "no" for reason Failing`,
		`{"reachable":"maybe","reason":"Answers"}`:                                  `upstream state: reachable must be "yes" for reason Answers`,
		`{"reachable":"no","reason":"a reason with spaces"}`:                        "upstream state: unknown reason",
		`{"reachable":"no"}`: "upstream state: unknown reason",
		`{}`:                 "upstream state: unknown reason",
		`null`:               "upstream state: unknown reason",
		`<html>`:             unreadable,
		``:                   unreadable,
		`[]`:                 unreadable,
		`{"reason":1}`:       unreadable,
		`{"reachable":"yes","reason":"Answers"}` + strings.Repeat(" ", MaxUpstreamState): "upstream state: more than 65536 bytes",
	} {
		_, err := DecodeUpstreamState([]byte(body))
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%.100s: got %v, want %s", body, err, want)
		}
	}
	long := `{"reachable":"yes","reason":"Answers","message":"` + strings.Repeat("é", MaxUpstreamMessage) + `"}`
	if state, err := DecodeUpstreamState([]byte(long)); err != nil || len(state.Message) > MaxUpstreamMessage || !strings.HasSuffix(state.Message, "é…") {
		t.Errorf("long message: %d bytes, %v", len(state.Message), err)
	}
}
