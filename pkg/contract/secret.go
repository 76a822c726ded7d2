// SPDX-License-Identifier: Apache-2.0

package contract

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Keys and limits of Secrets.
const (
	// UsernameKey and PasswordKey are the keys of a Secret with the credentials for an upstream, and the names of the
	// files in which the cache server finds them.
	UsernameKey = "username"
	PasswordKey = "password"
	// ProxyUsernameKey and ProxyPasswordKey are the names of the files in which the cache server finds the credentials for
	// a proxy. In the Secret of the Shoot owner, their keys are UsernameKey and PasswordKey.
	ProxyUsernameKey = "proxy-username"
	ProxyPasswordKey = "proxy-password"
	// CABundleKey is the key of a Secret with certificate authorities in PEM.
	CABundleKey = "bundle.crt"

	// MaxCredential is the maximum size of a username and of a password, in bytes. MaxCABundle is that of a bundle of
	// certificate authorities; Debian's bundle of all public roots has 220 KiB. MaxProxyCredential is that of a username and
	// of a password for a proxy, which are sent in a header. The credentials of both kinds, the Shoot owner's bundle and the
	// operator's bundle of one cache fit together into one Secret, which Kubernetes limits to 1 MiB.
	MaxCredential      = 64 << 10
	MaxProxyCredential = 1 << 10
	MaxCABundle        = 400 << 10
)

// Credential returns the credential in the value of a Secret or in a file: a Secret made from a file often ends with a
// line end, which is not part of it.
func Credential(content []byte) string { return strings.TrimRight(string(content), "\r\n") }

// CheckProxyCredentials checks two results of Credential. The error does not repeat them.
func CheckProxyCredentials(username, password string) error {
	if err := CheckUsername(username); err != nil {
		return fmt.Errorf("username: %w", err)
	}
	if err := CheckPassword(password); err != nil {
		return fmt.Errorf("password: %w", err)
	}
	if len(username) > MaxProxyCredential || len(password) > MaxProxyCredential {
		return fmt.Errorf("username and password must have at most %d bytes each", MaxProxyCredential)
	}
	return nil
}

// CheckUsername checks a result of Credential. The error does not repeat it.
func CheckUsername(username string) error {
	switch {
	case strings.TrimSpace(username) == "":
		return errors.New("must not be blank")
	case strings.ContainsFunc(username, unicode.IsSpace):
		return errors.New("must not have white space; a line feed at its end counts")
	case strings.Contains(username, ":"):
		// RFC 7617, section 2: the first colon separates username and password.
		return errors.New("must not have a colon, which would begin the password in HTTP basic authentication")
	}
	return checkCredential(username)
}

// CheckPassword checks a result of Credential. The error does not repeat it.
func CheckPassword(password string) error {
	if strings.TrimSpace(password) == "" {
		return errors.New("must not be blank")
	}
	return checkCredential(password)
}

func checkCredential(value string) error {
	switch {
	case len(value) > MaxCredential:
		return fmt.Errorf("must have at most %d bytes", MaxCredential)
	// The configuration of the distribution project's registry is YAML, which cannot contain other characters.
	case !utf8.ValidString(value):
		return errors.New("must be UTF-8")
	case strings.ContainsFunc(value, func(r rune) bool { return r >= 0x7f && r <= 0x9f || r == '\ufffe' || r == '\uffff' }):
		return errors.New("must not have the characters U+007F to U+009F, U+FFFE and U+FFFF")
	}
	return nil
}

// CheckCABundle is CheckCertificates for the bundle of one author, of at most MaxCABundle bytes.
func CheckCABundle(bundle string) error {
	if len(bundle) > MaxCABundle {
		return fmt.Errorf("must have at most %d bytes", MaxCABundle)
	}
	return CheckCertificates(bundle)
}

// CheckCertificates requires at least one certificate in PEM, and rejects all contents that Go's certificate pools would
// silently ignore: every block that is not a certificate without headers. Text between the certificates is allowed. The
// error repeats nothing of the bundle but the types of its blocks.
func CheckCertificates(bundle string) error {
	rest := []byte(bundle)
	// pem.Decode skips a malformed block as if it were text between blocks. Comparing the number of decoded blocks with
	// the number of their first lines finds it.
	for number := range max(1, strings.Count(bundle, "-----BEGIN ")) {
		number++
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return errors.New("one of its PEM blocks cannot be read, want -----BEGIN CERTIFICATE-----, base64, -----END CERTIFICATE-----")
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("PEM block %d is a %s, want only certificates", number, block.Type)
		}
		if len(block.Headers) > 0 {
			return fmt.Errorf("PEM block %d has headers, with which its certificate is ignored; remove the lines before the base64", number)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("certificate %d: %w", number, err)
		}
	}
	return nil
}
