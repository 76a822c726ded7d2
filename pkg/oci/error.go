// SPDX-License-Identifier: Apache-2.0

package oci

// ErrorCode is a code of the distribution specification, section "Error codes".
type ErrorCode string

// Error codes that a registry without uploads can answer with.
const (
	CodeBlobUnknown     ErrorCode = "BLOB_UNKNOWN"
	CodeDigestInvalid   ErrorCode = "DIGEST_INVALID"
	CodeManifestUnknown ErrorCode = "MANIFEST_UNKNOWN"
	CodeNameInvalid     ErrorCode = "NAME_INVALID"
	CodeNameUnknown     ErrorCode = "NAME_UNKNOWN"
	CodeDenied          ErrorCode = "DENIED"
	CodeUnsupported     ErrorCode = "UNSUPPORTED"
	CodeTooManyRequests ErrorCode = "TOOMANYREQUESTS"
	// The codes from here on are not in the specification; clients know them from the distribution project.
	CodeUnavailable  ErrorCode = "UNAVAILABLE"
	CodeUnknown      ErrorCode = "UNKNOWN"
	CodeRangeInvalid ErrorCode = "RANGE_INVALID"
	CodePageInvalid  ErrorCode = "PAGINATION_NUMBER_INVALID"
)

// Error is one entry of an error body.
type Error struct {
	Code    ErrorCode `json:"code"`
	Message string    `json:"message"`
	// Detail is any JSON value; nil leaves it out.
	Detail any `json:"detail,omitempty"`
}

// ErrorBody is the body, of type application/json, of every answer with a status of 400 and above.
type ErrorBody struct {
	Errors []Error `json:"errors"`
}
