// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseChallenges(t *testing.T) {
	t.Parallel()
	type parameters = map[string]string
	b := func(p parameters) Challenge { return Challenge{"bearer", p} }
	for _, tc := range []struct {
		name    string
		headers []string
		want    []Challenge
	}{
		{"none", nil, nil},
		{"empty", []string{""}, nil},
		{"bearer", []string{`Bearer realm="https://a/token",service="s",scope="repository:a/b:pull"`},
			[]Challenge{b(parameters{"realm": "https://a/token", "service": "s", "scope": "repository:a/b:pull"})}},
		{"spaces and case", []string{` BEARER  Realm = "x" , SERVICE="y"`}, []Challenge{b(parameters{"realm": "x", "service": "y"})}},
		{"several in one header", []string{`Basic realm="r", Bearer realm="x",service="y"`},
			[]Challenge{{"basic", parameters{"realm": "r"}}, b(parameters{"realm": "x", "service": "y"})}},
		{"several headers", []string{`Negotiate`, `NTLM`, `Bearer realm="x"`}, []Challenge{{"negotiate", parameters{}}, {"ntlm", parameters{}}, b(parameters{"realm": "x"})}},
		{"scheme without parameters first", []string{`Negotiate, Bearer realm="x"`}, []Challenge{{"negotiate", parameters{}}, b(parameters{"realm": "x"})}},
		{"token68", []string{`Negotiate YW55+/8==, Basic realm="r"`}, []Challenge{{"negotiate", parameters{}}, {"basic", parameters{"realm": "r"}}}},
		{"escapes and commas in quotes", []string{`Bearer realm="a,\"b\\",scope="x y"`}, []Challenge{b(parameters{"realm": `a,"b\`, "scope": "x y"})}},
		{"no quotes", []string{`Bearer realm=https://a/token,service=s`}, []Challenge{b(parameters{"realm": "https://a/token", "service": "s"})}},
		{"no commas", []string{`Bearer realm="x" service="y"`}, []Challenge{b(parameters{"realm": "x", "service": "y"})}},
		{"empty elements", []string{`, ,Bearer realm="x",,service="y",`}, []Challenge{b(parameters{"realm": "x", "service": "y"})}},
		{"empty value", []string{`Bearer realm="x",scope=""`}, []Challenge{b(parameters{"realm": "x", "scope": ""})}},
		{"parameter without a scheme", []string{`realm="x"`}, nil},
		{"quote without an end", []string{`Bearer realm="x",service="y`}, []Challenge{b(parameters{"realm": "x"})}},
		{"garbage", []string{`"`, `=`, `(`}, nil},
	} {
		got := ParseChallenges(http.Header{"Www-Authenticate": tc.headers})
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", tc.name, diff)
		}
	}
	var many []string
	for range 1000 {
		many = append(many, `Basic realm="r", Basic realm="r"`)
	}
	if got := len(ParseChallenges(http.Header{"Www-Authenticate": many})); got != maxChallenges {
		t.Errorf("%d challenges of 2000, want %d", got, maxChallenges)
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	bearerChallenge := Challenge{"bearer", map[string]string{"realm": "x"}}
	basicChallenge := Challenge{"basic", map[string]string{"realm": "r"}}
	for _, tc := range []struct {
		name        string
		challenges  []Challenge
		credentials bool
		want        string
	}{
		{"basic first", []Challenge{basicChallenge, bearerChallenge}, true, "bearer"},
		{"basic first, anonymous", []Challenge{basicChallenge, bearerChallenge}, false, "bearer"},
		{"basic only", []Challenge{basicChallenge}, true, "basic"},
		{"basic only, anonymous", []Challenge{basicChallenge}, false, ""},
		{"bearer without a realm", []Challenge{{"bearer", nil}, basicChallenge}, true, "basic"},
		{"unknown", []Challenge{{"negotiate", nil}}, true, ""},
	} {
		got, ok := choose(tc.challenges, tc.credentials)
		if got.Scheme != tc.want || ok != (tc.want != "") {
			t.Errorf("%s: %v, %t, want %q", tc.name, got, ok, tc.want)
		}
	}
}

func TestTokenServer(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		registry, realm string
		valid           bool
	}{
		{"https://registry.example.com", "https://auth.example.com/token", true},
		{"https://registry.example.com", "https://registry.example.com/token", true},
		{"https://registry.example.com", "https://203.0.113.7/token", true},
		{"https://registry.example.com", "http://auth.example.com/token", false},
		{"https://registry.example.com", "ftp://auth.example.com/token", false},
		{"https://registry.example.com", "https://169.254.169.254/token", false},
		{"https://registry.example.com", "https://[fd00:ec2::254]/token", false},
		{"https://registry.example.com", "https://[::ffff:127.0.0.1]/token", false},
		{"https://registry.example.com", "https://10.0.0.1/token", false},
		{"https://registry.example.com", "https://127.0.0.1/token", false},
		{"https://registry.example.com", "https://0.0.0.0/token", false},
		{"https://registry.example.com", "/token", false},
		{"https://registry.example.com", "::", false},
		{"http://registry.example.com", "http://auth.example.com/token", true},
		{"http://registry.example.com", "https://auth.example.com/token", true},
		{"https://10.0.0.1:5000", "https://10.0.0.2:5001/token", true},
		{"https://10.0.0.1:5000", "https://169.254.169.254/token", false},
		{"https://169.254.1.1", "https://169.254.1.1/token", true},
	} {
		registry, err := url.Parse(tc.registry)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseRealm(tc.realm, originOf(registry)); (err == nil) != tc.valid {
			t.Errorf("registry %s, realm %s: %v", tc.registry, tc.realm, err)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	f.Add(`Basic realm="r", Bearer realm="x",service="y"`)
	f.Add(`Negotiate YW55==, a=b="c`)
	f.Fuzz(func(t *testing.T, header string) {
		for _, c := range ParseChallenges(http.Header{"Www-Authenticate": {header, header}}) {
			if c.Scheme == "" || len(c.Parameters) > maxParameters {
				t.Errorf("%+v", c)
			}
		}
	})
}
