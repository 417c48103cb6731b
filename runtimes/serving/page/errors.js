/** What is thrown on purpose: the message says what is wrong, and what mends it. */
export class DetrError extends Error {}
